"""An Equinox MLP, five sigmoid layers deep, on scikit-learn's digits: its gradients vanish layer by layer.

    python experiments/examples/equinox_mlp.py

The three lines that end in "# vgjax" are added; the rest is an ordinary training script.
"""

import equinox as eqx
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import vgjax  # vgjax


@eqx.filter_value_and_grad
def loss_fn(model, inputs, labels):
    logits = jax.vmap(model)(inputs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@eqx.filter_jit
def train_step(model, opt_state, inputs, labels):
    loss, grads = loss_fn(model, inputs, labels)
    updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), opt_state, loss


digits = load_digits()
inputs, labels = (digits.data / 16).astype(np.float32), digits.target.astype(np.int32)

tx = optax.sgd(0.1, momentum=0.9)
tx = vgjax.watch(tx, every=10, record="all")  # vgjax

model = eqx.nn.MLP(64, 10, width_size=32, depth=5, activation=jax.nn.sigmoid, key=jax.random.key(0))
opt_state = tx.init(eqx.filter(model, eqx.is_array))
for step in range(60):
    batch = np.random.default_rng(step).choice(len(inputs), 64)
    model, opt_state, loss = train_step(model, opt_state, inputs[batch], labels[batch])
    if step % 10 == 0:
        print(f"step {step}: loss {loss:.3f}")
        print({tag: x for tag, x in vgjax.scalars(opt_state).items() if "/rms/" in tag})  # vgjax
