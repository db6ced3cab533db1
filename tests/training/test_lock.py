import pytest

from usfm.errors import UserError
from usfm.training.lock import in_use


def test_a_workdir_is_one_runs_at_a_time(tmp_path):
    workdir = tmp_path / "run"
    with in_use(workdir):
        message = r"run is in use by another run \(process \d+ on "
        with pytest.raises(UserError, match=message), in_use(workdir):
            pass
        with in_use(tmp_path / "another"):
            pass
    with in_use(workdir):  # free again
        pass
