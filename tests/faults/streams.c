/* Goes before the shim where C++ libraries are looked at: gives libstdc++ a real stream on a descriptor.
 *
 * A C++ file stream opens with `fopen` and then writes to the descriptor of the FILE by itself. The shim's own `fopen`
 * has none to give (it is made for C programs, which write through the FILE), and every C++ save would fail.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

typedef FILE *opener(const char *, const char *);

static FILE *stream(const char *path, const char *mode, const char *name, void *caller) {
    Dl_info from;
    int cpp = dladdr(caller, &from) && from.dli_fname && strstr(from.dli_fname, "libstdc++");
    if (!cpp || mode[0] == 'r') return ((opener *)dlsym(RTLD_NEXT, name))(path, mode);
    int flags = (strchr(mode, '+') ? O_RDWR : O_WRONLY) | O_CREAT | (mode[0] == 'a' ? O_APPEND : O_TRUNC);
    int fd = open(path, flags | O_CLOEXEC, 0666); /* the shim's */
    return fd < 0 ? NULL : fdopen(fd, mode);
}

FILE *fopen(const char *path, const char *mode) { return stream(path, mode, "fopen", __builtin_return_address(0)); }
FILE *fopen64(const char *path, const char *mode) { return stream(path, mode, "fopen64", __builtin_return_address(0)); }
