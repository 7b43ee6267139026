"""A Flax Linen CNN on scikit-learn's digits: norms, updates and what clipping did, layer by layer, in TensorBoard.

    python experiments/examples/flax_cnn.py && tensorboard --logdir cnn

The three lines that end in "# vgjax" are added; the rest is an ordinary training script.
"""

import flax.linen as nn
import jax
import numpy as np
import optax
from clu import metric_writers
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import vgjax  # vgjax


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (8, 16, 16):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def loss_fn(params, images, labels):
    logits = CNN().apply({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def train_step(state, images, labels):
    loss, grads = jax.value_and_grad(loss_fn)(state.params, images, labels)
    return state.apply_gradients(grads=grads), loss


digits = load_digits()
images = (digits.images[..., None] / 16).astype(np.float32)
labels = digits.target.astype(np.int32)

clip, adam = optax.clip_by_global_norm(0.5), optax.adam(1e-3)
tx = optax.chain(clip, adam)
tx = vgjax.watch(adam, clip, every=10, record=("norms", "points", "weights"))  # vgjax

params = CNN().init(jax.random.key(0), images[:1])["params"]
state = TrainState.create(apply_fn=CNN().apply, params=params, tx=tx)
writer = metric_writers.SummaryWriter("cnn")
for step in range(60):
    batch = np.random.default_rng(step).choice(len(images), 64)
    state, loss = train_step(state, images[batch], labels[batch])
    if step % 10 == 0:
        writer.write_scalars(step, {"loss": loss})
        writer.write_scalars(step, vgjax.scalars(state.opt_state))  # vgjax
writer.close()
print(f"loss {loss:.3f}")
