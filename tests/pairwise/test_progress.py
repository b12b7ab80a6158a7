import keras
import numpy as np
import pytest

from kreg.pairwise.progress import Progress


class Recorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_begin(self, logs=None):
        self.seen.append("begin")

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(epoch)

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, logs))

    def on_train_end(self, logs=None):
        self.seen.append("end")


def test_each_step_is_an_epoch_with_the_means_of_the_pairs():
    recorder = Recorder()
    progress = Progress(2, [recorder], verbose=False)
    progress.step("level 1", similarity=np.array([1.0, 2.0]), overlap=0.5)
    progress.step("level 0", similarity=np.array([3.0, 5.0]), overlap=0.25)
    progress.close()
    assert recorder.seen == [
        "begin",
        0,
        (0, {"similarity": 1.5, "overlap": 0.5}),
        1,
        (1, {"similarity": 4.0, "overlap": 0.25}),
        "end",
    ]
    assert progress.history["stage"] == ["level 1", "level 0"]
    np.testing.assert_array_equal(progress.history["similarity"], [[1, 2], [3, 5]])


def test_a_callback_may_stop():
    class Stopper(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    progress = Progress(5, [Stopper()], verbose=False)
    progress.step("a", similarity=1.0)
    assert not progress.stopped
    progress.step("a", similarity=1.0)
    assert progress.stopped


def test_callbacks_know_how_many_steps_there_will_be():
    recorder = Recorder()
    Progress(7, [recorder], verbose=False)
    assert recorder.params["epochs"] == 7


def test_keras_own_callbacks_work():
    early = keras.callbacks.EarlyStopping(monitor="similarity", mode="max", patience=1)
    history = keras.callbacks.History()
    progress = Progress(9, [early, history], verbose=False)
    for value in (1.0, 2.0, 1.5, 1.4):
        progress.step("a", similarity=value)
        if progress.stopped:
            break
    progress.close()
    assert history.history["similarity"] == [1.0, 2.0, 1.5]


@pytest.mark.parametrize("done", [0, 1, 3])
def test_the_bar_ends_wherever_the_steps_do(capsys, done):
    progress = Progress(3, [], verbose=True)
    for _ in range(done):
        progress.step("a", similarity=0.5, overlap=1.0, motion=0.1)
    progress.close()
    shown = capsys.readouterr().out
    assert (f"{done}/3" in shown) == (done > 0) or done == 0
    if done:
        assert "similarity: 0.5" in shown


def test_is_quiet_unless_asked(capsys):
    progress = Progress(2, [], verbose=False)
    progress.step("a", similarity=0.5)
    progress.close()
    assert capsys.readouterr().out == ""
