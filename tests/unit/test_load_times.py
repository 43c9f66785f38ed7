"""The load time of a pool is measured from the numbers of its replicas."""

from serve_app.scaling.load_times import LoadTime


def test_it_is_the_time_from_the_first_sight_of_a_replica_until_it_serves():
    load = LoadTime(60.0)
    load.count(0, 2, 100.0)
    load.count(0, 2, 105.0)
    assert (load.seconds, load.waiting_s(105.0)) == (60.0, 5.0)
    load.count(1, 1, 110.0)
    assert load.seconds == 10.0
    load.count(2, 0, 130.0)
    assert load.seconds == 20.0  # half of 10, and half of 30
    assert load.waiting_s(130.0) == 0.0


def test_replicas_that_are_given_up_while_they_start_measure_nothing():
    load = LoadTime(60.0)
    load.count(0, 3, 0.0)
    load.count(0, 1, 5.0)
    load.count(0, 0, 10.0)
    load.count(1, 0, 99.0)  # was never seen starting
    assert not load.is_measured and load.seconds == 60.0


def test_a_replica_that_is_lost_and_replaced_is_measured_anew():
    load = LoadTime(60.0)
    load.count(2, 0, 0.0)
    load.count(1, 1, 50.0)
    load.count(2, 0, 58.0)
    assert load.seconds == 8.0
