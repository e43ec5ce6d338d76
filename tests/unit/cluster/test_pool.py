"""Work is handed out with back-pressure, and again where a worker or a piece of it fails."""

import random
from collections import Counter

import pytest

from noisescope.cluster.pool import ATTEMPTS, CALLS_PER_WORKER, Done, GivenUp, Job, Pool
from noisescope.errors import InputError, NoisescopeError


class FakeCrew:
    """Workers that square numbers; which calls end, and how, is up to the test.

    Args:
        moments: Draws which of the calls that can end ends next.
        fails: Returns how a job ends, or None where it works.
        starts: Returns how a start ends.
    """

    def __init__(self, moments=None, fails=lambda crew, job: None, starts=lambda crew: Done()):
        self.moments, self.fails, self.starts = moments, fails, starts
        self.number = 0
        self.alive: dict[int, list] = {}  # worker to its calls, the first running
        self.jobs: dict[str, Job] = {}
        self.ended: dict[str, Done] = {}
        self.most_waiting = 0
        self.carried_out = Counter()
        self.has_room = True
        self.lost = set()  # workers that are gone, which nobody has noticed yet
        self.pings = set()

    def hire(self):
        self.number += 1
        start = f"start {self.number}"
        self.alive[self.number] = [start] if self.has_room else []
        return self.number, start

    def ping(self, worker):
        self.number += 1
        ping = f"ping {self.number} of {worker}"
        self.alive[worker].append(ping)
        self.pings.add(ping)
        return ping

    def call(self, worker, job):
        self.number += 1
        call = f"call {self.number}"
        self.jobs[call] = job
        self.alive[worker].append(call)
        self.most_waiting = max(self.most_waiting, len(self.alive[worker]))
        return call

    def wait(self, calls, seconds):
        ready = [c for c in calls if any(mine[:1] == [c] for mine in self.alive.values())]
        if not ready:
            return []
        call = ready[0] if self.moments is None else self.moments.choice(ready)
        worker = next(w for w, mine in self.alive.items() if mine[:1] == [call])
        self.alive[worker].pop(0)
        gone = worker in self.lost
        self.ended[call] = Done(error="gone") if gone else self.end_of(call)
        return [call]

    def end_of(self, call):
        if call in self.pings:
            return Done()
        if call not in self.jobs:
            return self.starts(self)
        job = self.jobs[call]
        self.carried_out[job.name] += 1
        return self.fails(self, job) or Done(job.work**2)

    def outcome(self, call):
        return self.ended[call]

    def dismiss(self, worker):
        del self.alive[worker]

    def missing(self):
        return "no room"


def jobs(count):
    return [Job("square", str(n), n) for n in range(count)]


def squares(count):
    return {str(n): n**2 for n in range(count)}


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_every_job_is_done_once(size, count):
    crew = FakeCrew(random.Random(size))
    found = list(Pool(crew, size).run(jobs(count)))
    assert dict(found) == squares(count)
    assert len(found) == count
    assert all(times == 1 for times in crew.carried_out.values())


def test_a_worker_has_one_call_that_runs_and_one_that_waits():
    crew = FakeCrew()
    taken = []

    def source():
        for job in jobs(10):
            taken.append(job.name)
            yield job

    results = Pool(crew, 2).run(source())
    next(results)
    assert crew.most_waiting == CALLS_PER_WORKER == 2
    assert len(taken) <= 2 * CALLS_PER_WORKER + 1
    assert len(list(results)) == 9


def test_workers_stay_from_run_to_run():
    crew = FakeCrew()
    pool = Pool(crew, 2)
    list(pool.run(jobs(5)))
    workers = set(crew.alive)
    list(pool.run(jobs(5)))
    assert set(crew.alive) == workers
    pool.close()
    assert crew.alive == {}


@pytest.mark.parametrize("seed", range(20))
def test_workers_that_die_at_random_lose_nothing(seed):
    moments = random.Random(seed)

    def dies(crew, job):
        # Never as often as a job may be tried, or it would be given up.
        if crew.carried_out[job.name] < ATTEMPTS and moments.random() < 0.4:
            return Done(error="gone")
        return None

    crew = FakeCrew(moments, dies)
    found = list(Pool(crew, 3).run(jobs(12)))
    assert dict(found) == squares(12)
    assert len(found) == 12


def test_what_waits_behind_a_lost_call_is_no_attempt():
    """The job at the head kills its worker each time; those behind it are only moved."""

    def kills(crew, job):
        return Done(error="gone") if job.name == "0" else None

    crew = FakeCrew(fails=kills)
    found = list(Pool(crew, 1).run(jobs(4)))
    failed = [one for one in found if isinstance(one, GivenUp)]
    assert failed == [GivenUp("0", ATTEMPTS, "gone")]
    assert dict(one for one in found if not isinstance(one, GivenUp)) == {"1": 1, "2": 4, "3": 9}
    assert crew.carried_out == {"0": ATTEMPTS, "1": 1, "2": 1, "3": 1}


def test_a_job_that_fails_in_its_worker_is_tried_on_another():
    def fails(crew, job):
        if job.name == "1" and crew.carried_out["1"] < ATTEMPTS:
            return Done(error="spoilt")
        return None

    crew = FakeCrew(fails=fails)
    pool = Pool(crew, 1)
    list(pool.run(jobs(1)))
    (before,) = crew.alive
    assert dict(pool.run(jobs(3))) == squares(3)
    assert before not in crew.alive
    assert crew.carried_out["1"] == ATTEMPTS


def test_what_the_user_must_mend_ends_it_at_once():
    crew = FakeCrew(fails=lambda crew, job: Done(error="another model", is_users=True))
    with pytest.raises(InputError, match=r"^another model$"):
        list(Pool(crew, 2).run(jobs(5)))


def test_a_start_that_must_be_mended_ends_it():
    crew = FakeCrew(starts=lambda crew: Done(error="no such package", is_users=True))
    with pytest.raises(InputError, match=r"^no such package$"):
        list(Pool(crew, 2).run(jobs(5)))


def test_workers_that_never_start_are_an_error():
    told = []
    crew = FakeCrew(starts=lambda crew: Done(error="killed"))
    with pytest.raises(NoisescopeError, match=r"^no worker could be started: killed; what is"):
        list(Pool(crew, 1, told.append).run(jobs(1)))
    assert told == ["a worker is started again: killed"] * (ATTEMPTS - 1)


def test_a_start_that_fails_once_is_tried_again():
    def starts(crew):
        return Done(error="killed") if crew.number == 1 else Done()

    assert dict(Pool(FakeCrew(starts=starts), 1).run(jobs(3))) == squares(3)


def test_workers_without_room_are_waited_for_while_others_work():
    crew = FakeCrew()
    pool = Pool(crew, 1)
    list(pool.run(jobs(1)))
    crew.has_room = False
    pool._size = 3
    assert dict(pool.run(jobs(6))) == squares(6)


def test_one_is_told_what_is_waited_for():
    crew = FakeCrew()
    crew.has_room = False

    class Told(Exception):
        pass

    def tell(text):
        raise Told(text)

    with pytest.raises(Told, match="no room"):
        list(Pool(crew, 1, tell).run(jobs(1)))


def test_closing_the_iterator_ends_those_at_work_and_keeps_the_others():
    crew = FakeCrew()
    pool = Pool(crew, 3)
    list(pool.run(jobs(3)))
    workers = set(crew.alive)
    results = pool.run(jobs(4))
    next(results)
    busy = {worker for worker, calls in crew.alive.items() if calls}
    results.close()
    assert busy
    assert set(crew.alive) == workers - busy
    assert dict(pool.run(jobs(4))) == squares(4)


def test_jobs_that_end_early_are_not_asked_for_and_what_is_in_hand_is_done():
    is_ending = False

    def source():
        for job in jobs(50):
            if is_ending:
                return
            yield job

    results = Pool(FakeCrew(), 2).run(source())
    found = [next(results)]
    is_ending = True
    found += list(results)
    assert len(found) <= 2 * CALLS_PER_WORKER + 1
    assert dict(found).items() <= squares(50).items()


def test_workers_that_were_lost_while_idle_get_no_job():
    """Or a job would be given up by machines that went long ago."""
    crew = FakeCrew()
    pool = Pool(crew, 4)
    list(pool.run(jobs(4)))
    crew.lost = set(list(crew.alive)[:3])
    assert list(pool.run(jobs(1))) == [("0", 0)]
    assert crew.carried_out["0"] == 2  # once in each run


@pytest.mark.parametrize("bad", [1, 3])
def test_a_machine_that_starts_none_leaves_the_others_at_work(bad):
    told = []
    crew = FakeCrew(starts=lambda crew: Done() if crew.good() else Done(error="full"))
    started = []
    crew.good = lambda: (started.append(1), len(started) <= 4 - bad)[1]
    pool = Pool(crew, 4, told.append)
    assert dict(pool.run(jobs(20))) == squares(20)
    assert told[-1] == f"it goes on with {4 - bad} workers: full"
    assert dict(pool.run(jobs(20))) == squares(20)


def test_when_it_is_over_nothing_is_tried_again_and_nobody_is_waited_for():
    is_over = False

    def fails(crew, job):
        return Done(error="gone") if job.name == "1" else None

    results = Pool(FakeCrew(fails=fails), 1).run(jobs(9), lambda: is_over)
    found = [next(results)]
    is_over = True
    assert [*found, *results] == [("0", 0)]
    crew = FakeCrew()
    crew.has_room = False
    assert list(Pool(crew, 2).run(jobs(3), lambda: True)) == []


def test_a_start_waits_for_all_that_can_start():
    crew = FakeCrew()
    pool = Pool(crew, 3)
    pool.start()
    assert [member.starting for member in pool._members] == [None] * 3
    bad = FakeCrew(starts=lambda crew: Done(error="no package", is_users=crew.number == 3))
    bad.starts = lambda crew: Done(error="no package", is_users=True) if next(turn) == 2 else Done()
    turn = iter(range(9))
    with pytest.raises(InputError, match="no package"):
        Pool(bad, 3).start()


def test_a_start_does_not_wait_for_ever_for_those_without_room():
    crew = FakeCrew()
    pool = Pool(crew, 1)
    pool.start()
    crew.has_room = False
    pool._size = 3
    pool.start()
    assert dict(pool.run(jobs(3))) == squares(3)
