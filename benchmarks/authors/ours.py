"""One step of irnet for every line that comes in, on the work that theirs.py does. Started by compare.py."""

import argparse

import torch
from workload import CLASSES, LEARNING_RATE, MOMENTUM, PREDICTIONS, Workload, serve

from irnet import IRNet
from irnet.config import Config, ModelConfig, TrainConfig
from irnet.data.sample import Batch
from irnet.engine.optim import make_optimizer
from irnet.engine.step import make_scaler, train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", choices=["train", "test"], required=True)
    parser.add_argument("--regions", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    serve(lambda: step_of(args.mode, Workload(args.regions)))


def step_of(mode: str, work: Workload):
    """A function that takes one training step, or answers one image, and returns a number that must be finite."""
    torch.manual_seed(0)
    config = Config(
        model=ModelConfig(variant="local", backbone="resnet50", iterations=PREDICTIONS - 1),
        train=TrainConfig(lr=LEARNING_RATE, momentum=MOMENTUM),
    )
    model = IRNet(config.model, classes=CLASSES)
    batch = Batch(
        images=[torch.from_numpy(work.image)],
        boxes=torch.from_numpy(work.boxes),
        ptr=torch.tensor([0, len(work.boxes)]),
        labels=torch.from_numpy(work.labels),
        names=["image"],
    )
    if mode == "test":
        model.eval()

        def test() -> float:
            with torch.inference_mode():
                return float(model(batch).final.sum())

        return test
    optimizer, scaler = make_optimizer(model.train(), config.train), make_scaler(torch.device("cpu"), config.train)
    return lambda: train_step(model, batch, optimizer, scaler, config, 1)["loss"]


if __name__ == "__main__":
    main()
