"""Compiled programs that runs can share: settings that do not change a program are removed before it is looked up."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vgjax.data.batches import Arrays
from vgjax.initializers import is_data_dependent
from vgjax.training import parallel
from vgjax.training.chunk import run_chunk
from vgjax.training.divergence import first_bad
from vgjax.training.step import Program, Shared, State, fresh_state, initial_state


def chunk_program(program: Program) -> Callable[..., Any]:
    """`run_chunk` for all lanes on all devices; the same function for programs that do the same after the start."""
    return _chunk_program(_without_start(program))


def divergence_program(program: Program) -> Callable[..., Any]:
    """`first_bad` for all lanes on all devices, shared in the same way."""
    return _divergence_program(_without_start(program))


def first_states(program: Program, shared: Shared, lanes: Any) -> State:
    """The state of every lane at step 0, on the host [lanes, …]; replicas start from the same state."""
    replicas = program.config.replicas
    starts = jax.tree.map(lambda x: x[::replicas], lanes)
    program, train = _start_only(program, shared.train)
    unused: Any = None
    needed = Shared(train, unused, unused, shared.depth)
    state = jax.device_get(_start_program(program, initial_state)(needed, starts))
    return state if replicas == 1 else jax.tree.map(lambda x: x.repeat(replicas, axis=0), state)


def states_of(program: Program, shared: Shared, lanes_and_variables: Any) -> State:
    """The state of every lane at step 0 with given variables, on the host [lanes, …]."""
    return jax.device_get(_start_program(program, fresh_state)(shared, lanes_and_variables))


@functools.lru_cache(maxsize=64)
def _start_program(program: Program, start: Callable[..., State]) -> Callable[..., Any]:
    return parallel.start_program(functools.partial(start, program))


@functools.lru_cache(maxsize=64)
def _chunk_program(program: Program) -> Callable[..., Any]:
    return parallel.program(program.where, functools.partial(run_chunk, program))


@functools.lru_cache(maxsize=64)
def _divergence_program(program: Program) -> Callable[..., Any]:
    return parallel.program(program.where, functools.partial(first_bad, program))


def _start_only(program: Program, train: Arrays) -> tuple[Program, Arrays]:
    """Program and data without what does not change the first state, so that runs that start alike share a program."""
    config = program.config
    later: dict[str, Any] = {
        "dataset": "",
        "scaling": "auto",
        "holdout": 0,
        "epochs": 1,
        "steps": 0,
        "validate": "end",
        "shuffle": config.shuffle if config.shuffle == "never" else "once",  # both draw the same order for epoch 0
        "replicas": 1,
        "reduction": "mean",
        "cadence": "epoch",
        "record": (),
        "record_layers": ("*",),
    }
    if not any(map(is_data_dependent, (config.initializer, config.output_initializer or config.initializer))):
        later |= {"batch_size": 1, "shuffle": "never", "last_batch": "drop"}  # one example of zeros gives the shapes
        later |= {"activation": "linear", "norm_epsilon": 1e-5, "norm_momentum": 0.99}
        train = jax.tree.map(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), train)
    config, where = dataclasses.replace(config, **later), parallel.Layout(1, "lanes")
    return Program(config, program.classes, len(train.labels), where), train


def _without_start(program: Program) -> Program:
    """The program without what only changes the data, the first state or the plan: such settings share a program."""
    start: dict[str, Any] = {
        "dataset": "",
        "scaling": "auto",
        "holdout": 0,
        "cadence": "epoch",
        "validate": "end",
        "output_initializer": "",
    }
    if not is_data_dependent(program.config.initializer):  # those keep equal layers apart, and so change the program
        start |= {"initializer": "lecun_normal"}
    if program.config.schedule == "constant":  # it does not depend on the length of the run
        start |= {"epochs": 1, "steps": 0}
    return program._replace(config=dataclasses.replace(program.config, **start))
