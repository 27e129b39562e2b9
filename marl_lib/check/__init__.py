"""Feedback on the exercises: ``check.ch01_ex1(your_function)`` says what it thinks of it."""

from marl_lib.check.ch01 import ch01_ex1, ch01_ex2, ch01_ex3, ch01_ex4, ch01_ex5
from marl_lib.check.ch02 import ch02_ex1, ch02_ex2, ch02_ex3, ch02_ex4, ch02_ex5
from marl_lib.check.ch03 import ch03_ex1, ch03_ex2, ch03_ex3, ch03_ex4, ch03_ex5
from marl_lib.check.ch04 import ch04_ex1, ch04_ex2, ch04_ex3, ch04_ex4, ch04_ex5
from marl_lib.check.ch05 import ch05_ex1, ch05_ex2, ch05_ex3, ch05_ex4, ch05_ex5
from marl_lib.check.ch06 import ch06_ex1, ch06_ex2, ch06_ex3, ch06_ex4, ch06_ex5
from marl_lib.check.ch07 import ch07_ex1, ch07_ex2, ch07_ex3, ch07_ex4, ch07_ex5
from marl_lib.check.core import Result

__all__ = [
    "Result",
    "ch01_ex1",
    "ch01_ex2",
    "ch01_ex3",
    "ch01_ex4",
    "ch01_ex5",
    "ch02_ex1",
    "ch02_ex2",
    "ch02_ex3",
    "ch02_ex4",
    "ch02_ex5",
    "ch03_ex1",
    "ch03_ex2",
    "ch03_ex3",
    "ch03_ex4",
    "ch03_ex5",
    "ch04_ex1",
    "ch04_ex2",
    "ch04_ex3",
    "ch04_ex4",
    "ch04_ex5",
    "ch05_ex1",
    "ch05_ex2",
    "ch05_ex3",
    "ch05_ex4",
    "ch05_ex5",
    "ch06_ex1",
    "ch06_ex2",
    "ch06_ex3",
    "ch06_ex4",
    "ch06_ex5",
    "ch07_ex1",
    "ch07_ex2",
    "ch07_ex3",
    "ch07_ex4",
    "ch07_ex5",
]
