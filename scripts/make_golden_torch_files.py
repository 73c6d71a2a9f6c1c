"""Write the golden files of PyTorch that tests/weights/test_torch_file.py reads.

Run, where PyTorch is installed: python scripts/make_golden_torch_files.py
It writes a checkpoint of a few kilobytes, as training scripts save it, in both formats of
torch.save to tests/golden/torch_*.pth, and the arrays of its state dict to torch_files.json.
"""

import argparse
import collections
import json
import pathlib
import platform

import torch
from torch import nn

GOLDEN = pathlib.Path(__file__).parent.parent / "tests" / "golden"
FORMATS = {"torch_zip.pth": True, "torch_legacy.pth": False}
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def make_state_dict() -> collections.OrderedDict:
    """Return tensors of all types, views of one storage, parameters and counters."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    state = network.state_dict()
    for dtype in DTYPES:
        state[f"types.{str(dtype)[6:]}"] = (torch.randn(3) * 50).to(dtype)
    values = torch.arange(24.0)
    state["views.transposed"] = values.reshape(2, 3, 4).permute(2, 0, 1)
    state["views.offset"] = values[5:17].reshape(3, 4)[:, ::2]
    state["views.scalar"] = values[7]
    state["views.repeated"] = values[3:4].expand(2, 2)
    state["views.empty"] = values[:0]
    state["parameter"] = nn.Parameter(torch.tensor([1.0, -0.0, torch.inf]))
    return state


def make_checkpoint() -> dict:
    """Return a state dict among what training scripts keep next to it."""
    network = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    return {
        "model": make_state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "args": argparse.Namespace(device=torch.device("cpu"), output=pathlib.PurePosixPath("a")),
        "epoch": 3,
        "scaler": {"scale": 65536.0},
        "rng": torch.get_rng_state()[:8].clone(),
    }


def main() -> None:
    content = make_checkpoint()
    for name, is_zip in FORMATS.items():
        torch.save(content, GOLDEN / name, _use_new_zipfile_serialization=is_zip)
    arrays = {}
    for name, tensor in content["model"].items():
        tensor = tensor.detach()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        values = array.ravel().tolist()  # of float32, in full
        arrays[name] = {"dtype": str(array.dtype), "shape": array.shape, "values": values}
    golden = {
        "source": f"torch {torch.__version__}, python {platform.python_version()}, seed 0",
        "files": list(FORMATS),
        "arrays": arrays,
    }
    (GOLDEN / "torch_files.json").write_text(f"{json.dumps(golden)}\n")


if __name__ == "__main__":
    main()
