"""One step of the authors' TensorFlow program for every line that comes in. Runs under Python 3.7 with tensorflow 1.15.

Started by compare.py. Imports the program from the folder where the reader put it, changes nothing in it, and adds only
what a newer Python lacks (xrange) and what this measurement never calls (its compiled box overlaps).
"""

import argparse
import builtins
import os
import sys
import types

import numpy as np
from workload import CLASSES, LEARNING_RATE, MOMENTUM, PREDICTIONS, Workload, serve


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="folder of the authors' program")
    parser.add_argument("--mode", choices=["train", "test"], required=True)
    parser.add_argument("--regions", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()

    def prepare():
        sys.path.insert(0, os.path.join(args.source, "lib"))
        builtins.xrange = range
        sys.modules["utils.cython_bbox"] = types.ModuleType("utils.cython_bbox")
        sys.modules["utils.cython_bbox"].bbox_overlaps = None
        return step_of(args.mode, Workload(args.regions), args.threads)

    serve(prepare)


def step_of(mode, work, threads):
    """A function that takes one training step, or answers one image, and returns a number that must be finite."""
    import tensorflow as tf
    from model.config import cfg
    from nets.attend_memory import resnetv1_memory

    cfg.MEM.ITER = PREDICTIONS
    cfg.TRAIN.RATE, cfg.TRAIN.MOMENTUM = LEARNING_RATE, MOMENTUM
    tf.set_random_seed(cfg.RNG_SEED)
    session = tf.Session(
        config=tf.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads)
    )
    network = resnetv1_memory(num_layers=50)
    layers = network.create_architecture("TRAIN" if mode == "train" else "TEST", CLASSES, tag="default")
    blobs = {
        "data": work.image.transpose(1, 2, 0)[None, :, :, ::-1],  # NHWC and BGR, their layout
        "gt_boxes": np.concatenate([work.boxes, work.labels[:, None].astype(np.float32)], 1),
        "im_info": np.array([work.height, work.width, 1.0], np.float32),
        "memory_size": np.ceil(np.array([work.height, work.width]) / cfg.BOTTLE_SCALE).astype(np.int32),
        "num_gt": np.int32(len(work.boxes)),
    }
    if mode == "test":
        session.run(tf.global_variables_initializer())
        return lambda: float(network.test_image(session, blobs)[0].sum())
    # As their solver does without DOUBLE_BIAS, which their own configurations turn off.
    optimizer = tf.train.MomentumOptimizer(tf.Variable(cfg.TRAIN.RATE, trainable=False), cfg.TRAIN.MOMENTUM)
    train = optimizer.apply_gradients(optimizer.compute_gradients(layers["total_loss"]))
    session.run(tf.global_variables_initializer())
    return lambda: float(network.train_step(session, blobs, train)[1])


if __name__ == "__main__":
    main()
