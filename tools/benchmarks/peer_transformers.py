"""A training step of transformers' DINOv3ViTModel, for model.py to time: run by $PEER_PY.

Argument: a JSON object of DINOv3ViTConfig's fields, with batch and image_size. Says what it is once
ready; then, for every line it reads, makes a step and says so.
"""

import json
import os
import sys

import torch  # pyrefly: ignore[missing-import]
import transformers  # pyrefly: ignore[missing-import]
from transformers import DINOv3ViTConfig, DINOv3ViTModel  # pyrefly: ignore[missing-import]

settings = json.loads(sys.argv[1])
batch, size = settings.pop("batch"), settings["image_size"]
torch.set_num_threads(os.cpu_count() or 1)
model = DINOv3ViTModel(DINOv3ViTConfig(**settings)).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
images = torch.randn(batch, 3, size, size)


def step() -> None:
    """Forward, backward, update."""
    loss = (model(images).last_hidden_state ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


step()
attention = model.config._attn_implementation
print(f"torch {torch.__version__}, transformers {transformers.__version__}, eager, {attention}",
      flush=True)  # fmt: skip
for _ in sys.stdin:
    step()
    print("done", flush=True)
