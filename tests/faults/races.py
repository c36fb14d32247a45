"""Jobs that start at the same time: one becomes the owner of the directory, the others are told so, and it can save.

One is stopped before each call of its start while another does all of its own; or all go call by call, in any order.
"""

from __future__ import annotations

import random

from faults.contenders import Scene, Worker, set_up
from faults.shim import Mode


def race(world_size: int, left: str, at: int, stopped: str = "start", other: str = "start") -> str:
    """One stops before call `at` of what it does, the other does all of its own, and the first goes on."""
    with set_up(world_size, left) as scene:
        first = scene.worker(stopped, Mode.STOP, at)
        if not first.stops_at_its_call():
            return "the call was not reached"
        second = scene.worker(other)
        second.does(1)
        first.go_on()
        first.does(1)
        return _one_owner(scene, {first: stopped, second: other})


def alternate(world_size: int, left: str, racers: int, take_over: bool, seed: int) -> str:
    """All go call by call, in an order drawn by `seed`; some begin when others are in the middle."""
    draw = random.Random(seed)
    with set_up(world_size, left) as scene:
        begun: list[Worker] = []
        active: list[Worker | None] = [None] * racers
        while active:
            worker = active.pop(draw.randrange(len(active)))
            if worker is None:
                worker = scene.worker("start", Mode.STOP_EACH, take_over=take_over and len(begun) == 1)
                begun.append(worker)
            else:
                worker.go_on()
            if _steps(worker, draw.choice((0, 0, 1, 3, 10, 30))):
                active.append(worker)
        if take_over:
            return _one_saves(scene, begun, draw)
        return _one_owner(scene, dict.fromkeys(begun, "start"))


def _steps(worker: Worker, more: int) -> bool:
    """Lets it do some calls; whether it is still in its start."""
    for left in range(more, -1, -1):
        if not worker.stops():
            worker.hear()
            return False
        worker.hear()
        if worker.answers:
            return False
        if left:
            worker.go_on()
    return True


def _one_owner(scene: Scene, workers: dict[Worker, str]) -> str:
    """Exactly one has the directory; the others were told so; it saves, and that is found."""
    ends = [(what, worker.answers[0] if worker.answers else "died") for worker, what in workers.items()]
    owners = [w for w, what in workers.items() if what != "repair" and w.answers and not w.answers[0].error]
    failed = [answer for _, answer in ends if isinstance(answer, str) or (answer.error and answer.exit_code != 61)]
    if len(owners) != 1 or failed:
        return f"{len(owners)} own the directory: {ends}"
    owner = owners[0]
    if workers[owner] == "start" and not scene.beats():
        return "the owner's heartbeat is gone"
    for worker in workers:
        if worker is not owner:
            worker.dies()
    if workers[owner] == "start" and (wrong := scene.saves(owner)):
        return wrong
    owner.dies()
    return scene.judged(*(worker for worker in workers if worker is not owner), owner)


def _one_saves(scene: Scene, workers: list[Worker], draw: random.Random) -> str:
    """One was allowed to take over: of those that have started one can save, the others are told that they cannot."""
    started = [worker for worker in workers if not worker.answers[0].error]
    for worker in draw.sample(started, len(started)):
        worker.order()
        worker.does(2)
    saved = [worker for worker in started if not worker.answers[-1].error]
    answers = [answer for worker in workers for answer in worker.answers]
    if len(saved) != 1 or any(answer.error and answer.exit_code != 61 for answer in answers):
        return f"{len(saved)} could save: {[worker.answers for worker in workers]}"
    saved[0].dies()
    return scene.judged(*(worker for worker in started if worker is not saved[0]), saved[0])
