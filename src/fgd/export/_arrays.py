"""Named arrays as an .npz file within a file."""

import io
import zipfile
from math import prod
from typing import Any

import jax
import numpy as np


def npz(arrays: dict[str, jax.Array]) -> bytes:
    """What `np.load` reads; `np.savez` itself has no room for an array named "file"."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as folder:
        for name, value in arrays.items():
            with folder.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(value, order="C"), allow_pickle=False)
    return buffer.getvalue()


def unzipped(content: Any) -> dict[str, np.ndarray]:
    """What `npz` wrote; `np.load` would make arrays of any size that a header claims."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as folder:
        files = folder.infolist()
        if any(file.compress_type for file in files):
            raise ValueError("they are compressed")
        if sum(file.file_size for file in files) > len(content):
            raise ValueError("they claim to be longer than the file")
        for file in files:
            data = io.BytesIO(folder.read(file))
            np.lib.format.read_magic(data)
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(data)
            values = np.frombuffer(data.getbuffer(), dtype, prod(shape), data.tell())
            arrays[file.filename.removesuffix(".npy")] = values.reshape(
                shape, order="F" if fortran_order else "C"
            )
    return arrays
