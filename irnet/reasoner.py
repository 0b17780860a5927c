"""A trained model for use within a program: `load` reads a run, `Reasoner.predict` names the objects in boxes.

Reads no annotations and draws nothing; `irnet predict` does that.
"""

import os
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from .config import DataConfig
from .data.boxes import check_boxes
from .data.images import as_tensor, read_image
from .data.sample import Sample, collate
from .data.transforms import prepare
from .engine import checkpoint
from .engine.build import choose_device, restore_model
from .errors import InputError
from .models.irnet import IRNet

Picture = Tensor | Image.Image | str | os.PathLike


class Reasoner:
    """A model with the names of its classes and the size at which it was trained to see images.

    Attributes:
        model: The `IRNet`, in evaluation mode.
        classes: The names of its C classes.
    """

    def __init__(self, model: IRNet, classes: Sequence[str], config: DataConfig | None = None):
        """Wrap a model.

        Args:
            model: An `IRNet`; it is put into evaluation mode.
            classes: The names of its C classes.
            config: How images are resized and oriented; by default as for `irnet train`.
        """
        self.model, self.classes, self.config = model.eval(), list(classes), config or DataConfig()

    def __repr__(self) -> str:
        device = next(self.model.parameters()).device
        return f"Reasoner({self.model.config.variant!r}, {len(self.classes)} classes, on {device})"

    @torch.inference_mode()
    def predict(self, images: Picture | Sequence[Picture], boxes: Tensor | Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Name the object in every box of every image; images are reasoned about together, in one batch.

        Args:
            images: One image or a sequence of images: tensors [3, H, W] in RGB, uint8 or floating with white at 1, PIL
                images, or paths of files.
            boxes: For each image a tensor [n, 4], (x1, y1, x2, y2) in pixels of that image; n may be 0. For one image
                the tensor alone. A side may lie up to a pixel outside the image and is cut off there.

        Returns:
            For each image a dictionary, as torchvision's detectors give it, with tensors on the CPU:

            - ``boxes`` float32 [n, 4]: the boxes, in pixels of the image as it was given;
            - ``labels`` int64 [n]: the index of the likeliest class in `classes`;
            - ``scores`` float32 [n]: its probability, by the attended prediction;
            - ``logits`` float32 [n, C]: the attended prediction before the soft-max;
            - ``attention`` float32 [n, K]: the weight of each of the model's K predictions; each row sums to 1.

        Raises:
            InputError: An image that cannot be read, a tensor of another shape or dtype, boxes that are no boxes of
                the image, or another number of tensors of boxes than of images.
        """
        if isinstance(images, Picture):
            images, boxes = [images], [boxes]
        if len(images) != len(boxes):
            raise InputError("boxes", f"{len(boxes)} tensors for {len(images)} images", "give one for each image")
        if not images:
            return []
        samples = [self._sample(*pair, index) for index, pair in enumerate(zip(images, boxes, strict=True))]
        batch = collate([prepare(sample, self.config.short_side, self.config.long_side) for sample in samples])
        predictions = self.model(batch.to(next(self.model.parameters()).device))
        final = predictions.final.float().cpu().split(batch.ptr.diff().tolist())
        attention = predictions.attention.float().cpu().T.split(batch.ptr.diff().tolist())
        return [
            _answer(sample, logits, weights) for sample, logits, weights in zip(samples, final, attention, strict=True)
        ]

    def _sample(self, image: Picture, boxes: Tensor, index: int) -> Sample:
        where = f"image {index + 1}"
        if isinstance(image, (str, os.PathLike)):
            where = os.fspath(image)
            pixels = read_image(image, orientation=self.config.orientation, max_pixels=self.config.max_pixels)
        else:
            pixels = as_tensor(image, where)
        boxes = torch.as_tensor(boxes)
        if boxes.numel() == 0:
            boxes = boxes.reshape(0, 4)
        if boxes.dim() != 2 or boxes.shape[1] != 4 or boxes.is_complex() or boxes.dtype == torch.bool:
            raise InputError(where, f"its boxes are {boxes.dtype} {list(boxes.shape)}", "give numbers [n, 4]")
        boxes = check_boxes(boxes.detach().float().cpu(), pixels.shape[2], pixels.shape[1], where)
        return Sample(pixels, boxes, torch.zeros(len(boxes), dtype=torch.int64), where)


def load(run: str | os.PathLike, device: str | torch.device = "auto", best: bool = False) -> Reasoner:
    """Read a trained model.

    Args:
        run: A run's folder, or a checkpoint file.
        device: "cpu", "cuda", "cuda:1" and so on; "auto" is the first GPU where there is one.
        best: Of a folder take the weights with the best figure on the held-out images, not the last ones.

    Returns:
        A `Reasoner` on the device.

    Raises:
        InputError: There is no checkpoint, it is damaged, or the device cannot be used.
    """
    saved = checkpoint.find(run, checkpoint.BEST if best else checkpoint.LAST)
    model = restore_model(saved.config.model, len(saved.classes), saved.model, saved.source)
    return Reasoner(model.to(choose_device(str(device))), saved.classes, saved.config.data)


def _answer(sample: Sample, logits: Tensor, attention: Tensor) -> dict[str, Tensor]:
    scores, labels = logits.softmax(1).max(1)
    return {"boxes": sample.boxes, "labels": labels, "scores": scores, "logits": logits, "attention": attention}
