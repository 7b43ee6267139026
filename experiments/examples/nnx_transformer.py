"""A transformer of four NNX blocks in one stack, learning to copy: the gradients of every block by its name.

    python experiments/examples/nnx_transformer.py

The three lines that end in "# vgjax" are added; the rest is an ordinary training script.
"""

import jax
import optax
from flax import nnx

import vgjax  # vgjax

TOKENS, WIDTH, LENGTH = 16, 32, 12


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm_1, self.norm_2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads=4, in_features=WIDTH, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs), nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class Transformer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, depth: int = 4):
        self.embed = nnx.Embed(TOKENS, WIDTH, rngs=rngs)
        self.blocks = nnx.split_rngs(splits=depth)(nnx.vmap(Block, in_axes=0, out_axes=0))(rngs)
        self.head = nnx.Linear(WIDTH, TOKENS, rngs=rngs)

    def __call__(self, tokens):
        through = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(through(self.embed(tokens), self.blocks))


def loss_fn(model, tokens):
    logits = model(tokens)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()


@nnx.jit
def train_step(model, optimizer, tokens):
    loss, grads = nnx.value_and_grad(loss_fn)(model, tokens)
    optimizer.update(model, grads)
    return loss


tx = optax.adamw(1e-3)
tx = vgjax.watch(tx, every=10, record=("norms", "weights"), stacked="blocks")  # vgjax

model = Transformer(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
for step in range(30):
    tokens = jax.random.randint(jax.random.key(step), (32, LENGTH), 0, TOKENS)
    loss = train_step(model, optimizer, tokens)
    if step % 10 == 0:
        print(f"step {step}: loss {loss:.3f}")
        print(*(f"{tag:44} {x:.3g}" for tag, x in vgjax.scalars(optimizer.opt_state).items()), sep="\n")  # vgjax
