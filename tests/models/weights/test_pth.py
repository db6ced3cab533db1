"""What torch.save writes, read without torch."""

import collections
import io
import os
import pathlib
import pickle
import re
import sys
import types
import zipfile

import numpy as np
import pytest

from usfm.errors import UserError
from usfm.models import weights


# What torch would pickle, under its names.
def _rebuild_tensor_v2(*_):
    raise AssertionError("only its name is pickled")


def _rebuild_parameter(*_):
    raise AssertionError("only its name is pickled")


class FloatStorage:
    pass


class Key(str):
    """Stands for a storage, whose bytes are kept apart."""


class Parameter:
    def __init__(self, array: np.ndarray):
        self.array = array


for of_torch, module in (
    (_rebuild_tensor_v2, "torch._utils"),
    (_rebuild_parameter, "torch._utils"),
    (FloatStorage, "torch"),
):
    of_torch.__module__ = module


class TorchPickler(pickle.Pickler):
    """Pickles float32 arrays as torch pickles tensors: views keep the storage of their base."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.storages: list[np.ndarray] = []

    def reducer_override(self, obj):
        if isinstance(obj, Parameter):
            return _rebuild_parameter, (obj.array, True, collections.OrderedDict())
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        base = obj if obj.base is None else obj.base
        self.storages.append(base)
        offset = (obj.ctypes.data - base.ctypes.data) // obj.itemsize
        strides = tuple(step // obj.itemsize for step in obj.strides)
        key = Key(len(self.storages) - 1)
        hooks = collections.OrderedDict()
        return _rebuild_tensor_v2, (key, offset, obj.shape, strides, False, hooks)

    def persistent_id(self, obj):
        if isinstance(obj, Key):
            return ("storage", FloatStorage, str(obj), "cpu", self.storages[int(obj)].size)
        return None


def torch_save(saved, path: pathlib.Path, inner: str = "archive/") -> pathlib.Path:
    """Writes what torch.save would."""
    stubs = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
    stubs["torch"].__dict__.update(FloatStorage=FloatStorage)
    stubs["torch._utils"].__dict__.update(
        _rebuild_tensor_v2=_rebuild_tensor_v2, _rebuild_parameter=_rebuild_parameter
    )
    pickled = io.BytesIO()
    pickler = TorchPickler(pickled)
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in stubs.items():
            patch.setitem(sys.modules, name, stub)
        pickler.dump(saved)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{inner}data.pkl", pickled.getvalue())
        archive.writestr(f"{inner}byteorder", "little")
        for key, storage in enumerate(pickler.storages):
            archive.writestr(f"{inner}data/{key}", storage.tobytes())
    return path


@pytest.mark.parametrize("case", ["gelu", "swiglu"])
@pytest.mark.parametrize("inner", ["archive/", "dinov3/nested/", ""])
def test_a_pth_is_read_without_torch(case, inner, reference, folder, spell, assert_equal):
    state = collections.OrderedDict(spell(case, "meta"))
    state._metadata = {"": {"version": 1}}  # as torch's state dicts have  # pyrefly: ignore
    assert_equal(weights.read(torch_save(state, folder / "x.pth", inner)), reference[case])


@pytest.mark.parametrize("key", ["teacher", "model", "state_dict"])
def test_the_weights_of_a_training_checkpoint_are_found(
    key, reference, folder, spell, assert_equal
):
    state = {name: Parameter(array) for name, array in spell("gelu", "meta").items()}
    saved = {"epoch": 3, "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}, key: state}
    assert_equal(weights.read(torch_save(saved, folder / "x.pth")), reference["gelu"])
    with pytest.raises(UserError, match="no tensors by name, neither at its top nor under teacher"):
        weights.read(torch_save({"epoch": 3}, folder / "y.pth"))


def test_views_of_a_storage_are_read_by_their_strides(reference, folder, spell):
    state = spell("gelu", "meta")
    whole = np.arange(7 * 24, dtype=np.float32).reshape(7, 24)
    wide = np.arange(2 * 24 * 72, dtype=np.float32).reshape(24, 144)
    state |= {"norm.bias": whole[5], "blocks.0.attn.qkv.weight": wide[:, 1::2].T}
    _, params = weights.read(torch_save(state, folder / "x.pth"))
    np.testing.assert_array_equal(params["norm"]["bias"], whole[5])
    np.testing.assert_array_equal(params["blocks"]["attn"]["qkv"]["kernel"][0], wide[:, 1::2])


class Reduced:
    """Pickled as a call, which reading it back would make."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (eval, "__builtin__.eval"),
        (getattr, "__builtin__.getattr"),
        (np.zeros, "numpy.zeros"),
    ],
)
def test_a_pth_cannot_run_anything(function, name, folder, spell):
    ran = folder / "ran"
    command = f"touch {ran}" if function is os.system else f"open({str(ran)!r}, 'w')"
    state = spell("gelu", "meta") | {"extra": Reduced(function, command)}
    path = torch_save({"model": state}, folder / "x.pth")
    with pytest.raises(UserError, match=f"asks for {re.escape(name)}, .*nothing of it was run"):
        weights.read(path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (24,), (1000,)), (10**9, (24,), (1,)), (-24, (24,), (1,)), (0, (24,), (-1,))],
)
def test_a_tensor_cannot_reach_past_its_storage(offset, size, stride, folder, spell):
    tensor = Reduced(_rebuild_tensor_v2, Key(0), offset, size, stride, False, None)
    path = torch_save(spell("gelu", "meta") | {"norm.bias": tensor}, folder / "x.pth")
    with pytest.raises(UserError, match=r"is damaged \(.*too short\)|a tensor of size"):
        weights.read(path)


def test_old_and_damaged_pth_are_told_how_to_go_on(folder, spell):
    path = folder / "old.pth"
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    with pytest.raises(UserError, match=r"old format, a bare pickle. Convert it .*torch\.save"):
        weights.read(path)
    path = torch_save(spell("gelu", "meta"), folder / "x.pth")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="cut off"):
        weights.read(path)
    path.write_bytes(whole.replace(spell("gelu", "meta")["cls_token"].tobytes(), bytes(96)))
    with pytest.raises(UserError, match=r"is damaged .*Bad CRC"):
        weights.read(path)
    np.savez(folder / "x.npz", a=np.zeros(3))
    with pytest.raises(UserError, match=r"x.npz is a zip archive, but not one of torch\.save"):
        weights.read(folder / "x.npz")


def test_what_torch_saves_is_read(reference, folder, spell, assert_equal):
    torch = pytest.importorskip("torch")
    state = {name: torch.tensor(array) for name, array in spell("gelu", "meta").items()}
    state["norm.weight"] = torch.nn.Parameter(state["norm.weight"])
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"].T.contiguous().T
    torch.save({"teacher": state, "iteration": 7}, folder / "x.pth")
    assert_equal(weights.read(folder / "x.pth"), reference["gelu"])
    half = {name: tensor.detach().bfloat16() for name, tensor in state.items()}
    torch.save(half, folder / "half.pth")
    _, params = weights.read(folder / "half.pth")
    np.testing.assert_array_equal(params["norm"]["bias"], half["norm.bias"].float().numpy())
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="old format"):
        weights.read(folder / "old.pth")
