"""Triton kernels for GPUs behind `sam` and `masks`, each equal to its plain twin under Triton's interpreter.

They were never run on a GPU. So they are asked for (`model.kernels: triton`), and nothing imports them otherwise:
Triton is not on every platform.
"""
