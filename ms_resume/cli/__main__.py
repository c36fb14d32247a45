"""`python -m ms_resume.cli` is `ms-resume`."""

from ms_resume.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
