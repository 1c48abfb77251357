"""Reads torch's .bin checkpoints (zip archives since torch 1.6) and writes safetensors.

    archive/data.pkl   a pickled dict of names; each tensor refers to a storage by key
    archive/data/KEY   the bytes of that storage, little-endian

Pickles can name any function. This reader resolves the five names that a state dict is made of and
refuses every other one before anything is called.
"""

import collections
import json
import os
import pickle
import struct
import zipfile

# storage class -> safetensors dtype, bytes an element
STORAGES = {
    "FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2),
    "DoubleStorage": ("F64", 8), "LongStorage": ("I64", 8), "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2), "CharStorage": ("I8", 1), "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
}
COPY_BYTES = 1 << 24


class StorageType:
    def __init__(self, name):
        if name not in STORAGES:
            raise ValueError(f"storage type {name} is not known")
        self.dtype, self.item_bytes = STORAGES[name]


class Tensor:
    """A view of a storage: where it begins and how it is walked, in elements."""

    def __init__(self, storage, offset, shape, stride):
        self.kind, self.key, self.n_items = storage
        self.offset, self.shape, self.stride = offset, tuple(shape), tuple(stride)
        if any(not isinstance(n, int) or n < 0 for n in (offset, *self.shape, *self.stride)) or \
                len(self.shape) != len(self.stride):
            raise ValueError("tensor with a shape or stride that makes no sense")
        last = offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride))
        if self.count() and last >= self.n_items:
            raise ValueError("tensor reaches behind its storage")

    def count(self):
        n = 1
        for d in self.shape:
            n *= d
        return n

    def n_bytes(self):
        return self.count() * self.kind.item_bytes

    def same_place(self, other):
        return (self.key, self.offset, self.shape, self.stride) == \
            (other.key, other.offset, other.shape, other.stride)

    def runs(self):
        """Ranges of consecutive elements that make the tensor in row-major order."""
        dims = [(n, s) for n, s in zip(self.shape, self.stride) if n != 1]
        run = 1
        while dims and dims[-1][1] == run:
            run *= dims.pop()[0]
        at = [0] * len(dims)
        if self.count() == 0:
            return
        while True:
            yield self.offset + sum(i * s for i, (_, s) in zip(at, dims)), run
            d = len(dims) - 1
            while d >= 0 and at[d] + 1 == dims[d][0]:
                at[d] = 0
                d -= 1
            if d < 0:
                return
            at[d] += 1


def rebuild_tensor(storage, offset, shape, stride, *unused):
    return Tensor(storage, offset, shape, stride)


def rebuild_parameter(tensor, *unused):
    return tensor


class Unpickler(pickle.Unpickler):
    KNOWN = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    }

    def find_class(self, module, name):
        if (module, name) in self.KNOWN:
            return self.KNOWN[module, name]
        if module in ("torch", "torch.storage") and name in STORAGES:
            return StorageType(name)
        raise ValueError(f"the pickle asks for {module}.{name}, which no state dict needs")

    def persistent_load(self, pid):
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or \
                not isinstance(pid[1], StorageType) or not isinstance(pid[4], int):
            raise ValueError("the pickle refers to something that is no storage")
        return pid[1], str(pid[2]), pid[4]


class BinFile:
    """An open .bin file; tensors maps names to Tensor."""

    def __init__(self, path):
        self.path = path
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path}: not a zip archive; files of torch before 1.6 must be saved "
                             "again with a newer one")
        self.zip = zipfile.ZipFile(path)
        pickles = [n for n in self.zip.namelist() if n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{path}: {len(pickles)} data.pkl in the archive, want one")
        self.root = pickles[0][:-len("data.pkl")]
        if self.root + "byteorder" in self.zip.namelist() and \
                self.zip.read(self.root + "byteorder") != b"little":
            raise ValueError(f"{path}: not little-endian")
        with self.zip.open(pickles[0]) as f:
            try:
                state = Unpickler(f).load()
            except pickle.UnpicklingError as e:
                raise ValueError(f"{path}: {e}") from e
        if not isinstance(state, dict):
            raise ValueError(f"{path}: holds no dict of tensors")
        self.tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
        for name, tensor in self.tensors.items():
            if not isinstance(name, str):
                raise ValueError(f"{path}: a tensor's name is not a string")
            info = self.zip.getinfo(f"{self.root}data/{tensor.key}")
            if info.file_size < tensor.n_items * tensor.kind.item_bytes:
                raise ValueError(f"{path}: tensor {name}: its storage is cut short")
            tensor.file = self

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.zip.close()

    def copy(self, tensor, out):
        size = tensor.kind.item_bytes
        with self.zip.open(f"{self.root}data/{tensor.key}") as f:
            for start, n in tensor.runs():
                f.seek(start * size)
                left = n * size
                while left:
                    piece = f.read(min(left, COPY_BYTES))
                    if not piece:
                        raise ValueError(f"{self.path}: storage {tensor.key} is cut short")
                    out.write(piece)
                    left -= len(piece)


def write_safetensors(path, tensors):
    """Writes the tensors, widest elements first so that all are aligned. Returns their bytes."""
    order = sorted(tensors.items(), key=lambda kv: (-kv[1].kind.item_bytes, kv[0]))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in order:
        header[name] = {"dtype": tensor.kind.dtype, "shape": list(tensor.shape),
                        "data_offsets": [at, at + tensor.n_bytes()]}
        at += tensor.n_bytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path + ".partial"
    with open(partial, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in order:
            tensor.file.copy(tensor, out)
    os.replace(partial, path)
    return at
