"""The names behind `zoo:NAME`."""

from __future__ import annotations

from collections.abc import Callable

from meshwright.task import Task
from meshwright.zoo.convnet import convnet_task
from meshwright.zoo.deeplab import deeplab_task
from meshwright.zoo.diffusion_unet import diffusion_unet_task
from meshwright.zoo.dit import dit_task
from meshwright.zoo.dlrm import dlrm_task
from meshwright.zoo.gns import gns_task
from meshwright.zoo.gpt import gpt_task
from meshwright.zoo.lstm import lstm_task
from meshwright.zoo.mlp import mlp_task
from meshwright.zoo.moe import moe_task
from meshwright.zoo.ncf import ncf_task
from meshwright.zoo.resnet import resnet50_task
from meshwright.zoo.unet3d import unet3d_task

FACTORIES: dict[str, Callable[..., Task]] = {
    "convnet": convnet_task,
    "deeplab": deeplab_task,
    "diffusion-unet": diffusion_unet_task,
    "dit": dit_task,
    "dlrm": dlrm_task,
    "gns": gns_task,
    "gpt": gpt_task,
    "lstm": lstm_task,
    "mlp": mlp_task,
    "moe": moe_task,
    "ncf": ncf_task,
    "resnet50": resnet50_task,
    "unet3d": unet3d_task,
}
