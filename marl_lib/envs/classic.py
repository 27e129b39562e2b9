"""CartPole, Acrobot and MountainCar in batches, with physics that may differ from row to row.

The rules, constants and order of arithmetic are those of gymnasium's ``CartPole-v1``,
``Acrobot-v1`` and ``MountainCar-v0``, so a row of a batch goes through the states that their
environment goes through. What is new is that one call steps all rows, and that every constant of
nature can be given per row or drawn anew for each episode (domain randomisation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, pi, sin, tau
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from marl_lib.envs.base import BatchedVectorEnv, GymnasiumFace
from marl_lib.envs.draw import PALETTE, Canvas

Rows = np.ndarray | slice | Sequence[int]
Physics = Mapping[str, float | np.ndarray | Sequence[float]]

PAPER = (250, 249, 245)
GREY = (196, 196, 190)
LOST = (240, 226, 216)
HILL = (207, 222, 205)
INK = PALETTE["black"]


class Quantity(NamedTuple):
    """One constant of nature: its usual value and whether it may be zero."""

    default: float
    may_be_zero: bool = False


class _ClassicWorld(BatchedVectorEnv):
    """What the three worlds share: state, physics, where an episode starts.

    The state is held as ``(variables, B)``, so that each variable is one stretch of memory.
    """

    state_arrays = ("_state", "_physics")
    quantities: dict[str, Quantity]
    n_actions: int
    places: tuple[int, ...]  # entries of the observation that are no velocities
    start_low: tuple[float, ...]
    start_high: tuple[float, ...]

    def __init__(
        self, num_envs: int, max_steps: int | None, physics: Physics | None, autoreset: bool
    ):
        low, high = _read_physics(type(self).__name__, self.quantities, physics or {}, num_envs)
        largest = {name: float(np.max(value)) for name, value in high.items()}
        lowest, highest = self._bounds(largest)
        space = spaces.Box(np.array(lowest, np.float32), np.array(highest, np.float32))
        super().__init__(num_envs, space, spaces.Discrete(self.n_actions), max_steps, autoreset)
        self._low = np.stack([np.broadcast_to(low[name], num_envs) for name in self.quantities])
        self._span = np.stack([np.broadcast_to(high[name] - low[name], num_envs) for name in low])
        self._drawn = np.flatnonzero((self._span > 0).any(axis=1))
        self._start_low = np.array(self.start_low)[:, None]
        self._start_span = np.array(self.start_high)[:, None] - self._start_low
        self._state = np.zeros((len(self.start_low), num_envs))
        self._physics = self._low.copy()
        self._constants = self._derive(self._physics)

    def _bounds(self, largest: dict[str, float]) -> tuple[list[float], list[float]]:
        """Return the lowest and highest observation, given the largest value of each quantity."""
        raise NotImplementedError

    def _derive(self, physics: np.ndarray) -> np.ndarray:
        """Return the products of ``physics`` (P, rows) that a step needs, (K, rows)."""
        raise NotImplementedError

    def _start(self, rows: np.ndarray) -> None:
        assert self.streams is not None
        n = len(self._state)
        number = self.streams.uniform(n + len(self._drawn), rows).T
        self._state[:, rows] = self._start_low + self._start_span * number[:n]
        if len(self._drawn):
            where = np.ix_(self._drawn, rows)
            self._physics[where] = self._low[where] + self._span[where] * number[n:]
            self._constants[:, rows] = self._derive(self._physics[:, rows])

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        return np.array(self._state.T[rows], np.float32, order="C")

    def get_state(self) -> np.ndarray:
        """Return a copy of the state of every row, (B, variables) float64."""
        return self._state.T.copy()

    def set_state(self, state: np.ndarray, rows: Rows = slice(None)) -> np.ndarray:
        """Place rows of the batch in given states; physics and elapsed time stay as they are.

        Parameters
        ----------
        state : (rows, variables)
            In the order of :meth:`get_state`.
        rows : index of the rows to place, by default all.

        Returns
        -------
        obs : float32 array (rows, D), the observations of these rows

        Raises
        ------
        RuntimeError
            Before the first ``reset``, which draws the physics.
        ValueError
            If the shape is wrong or a value is not finite.
        """
        if self.streams is None:
            raise RuntimeError("call reset() before set_state()")
        rows = np.atleast_1d(np.arange(self.num_envs)[rows])
        state = np.asarray(state, float)
        if state.shape != (len(rows), len(self._state)):
            raise ValueError(
                f"state has shape {state.shape}, these rows take {(len(rows), len(self._state))}"
            )
        if not np.isfinite(state).all():
            raise ValueError(f"a state is finite, got {state!r}")
        self._state[:, rows] = state.T
        return self._observe(rows)

    def get_physics(self) -> dict[str, np.ndarray]:
        """Return the physics now in force, a copy of the (B,) values of every quantity."""
        return dict(zip(self.quantities, self._physics.copy(), strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where the world that wrote ``state`` stood."""
        super().load_state_dict(state)
        self._constants = self._derive(self._physics)


def _read_physics(
    world: str, quantities: dict[str, Quantity], physics: Physics, num_envs: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the lowest and highest value of every quantity, arrays of shape () or (B,)."""
    unknown = [name for name in physics if name not in quantities]
    if unknown:
        raise ValueError(
            f"{world} has no physics named {', '.join(map(repr, unknown))};"
            f" choose from {', '.join(quantities)}"
        )
    low, high = {}, {}
    for name, quantity in quantities.items():
        value = physics.get(name, quantity.default)
        try:
            numbers = np.asarray(value, float)
        except (TypeError, ValueError):
            numbers = np.array(np.nan)
        if isinstance(value, tuple) and numbers.shape == (2,):
            low[name], high[name] = numbers
        elif numbers.shape in ((), (num_envs,)) and not isinstance(value, tuple):
            low[name] = high[name] = numbers
        else:
            raise ValueError(
                f"{name} is a number, a tuple (low, high) or an array of shape ({num_envs},),"
                f" got {value!r}"
            )
        sign_ok = (numbers >= 0) if quantity.may_be_zero else (numbers > 0)
        if not (np.isfinite(numbers) & sign_ok).all():
            kind = "of at least 0" if quantity.may_be_zero else "above 0"
            raise ValueError(f"{name} is a finite number {kind}, got {value!r}")
        if np.any(low[name] > high[name]):
            raise ValueError(f"{name} is drawn between low and high, got low > high in {value!r}")
    return low, high


class BatchedCartPole(_ClassicWorld):
    """B carts, each with a pole to balance, as ``CartPole-v1``.

    Observations are (position [m], velocity [m/s], angle [rad], angular velocity [rad/s]), also the
    state; actions push to the left (0) or right (1); each step is worth 1. An episode terminates
    when the cart is more than 2.4 m from the middle or the pole more than 12 degrees from upright,
    and is truncated after ``max_steps``. It starts with every variable uniform in [-0.05, 0.05].

    Parameters
    ----------
    num_envs : int
    max_steps : int or None
    physics : dict, optional
        Any of gravity [m/s^2], masscart [kg], masspole [kg], length [m] (half the pole's),
        force_mag [N], tau [s] (the time step). A number holds for all rows, an array (B,) gives
        each row its own, and a tuple (low, high) has each episode of each row draw uniformly.
    autoreset : bool

    Raises
    ------
    ValueError
        If a name in ``physics`` is unknown, a value impossible or an array of the wrong shape.

    Notes
    -----
    Source: A. Barto, R. Sutton, C. Anderson, "Neuronlike adaptive elements that can solve difficult
    learning control problems", 1983; equations as in R. Florian, "Correct equations for the
    dynamics of the cart-pole system", 2007, without friction.
    """

    quantities = {
        "gravity": Quantity(9.8, may_be_zero=True),
        "masscart": Quantity(1.0),
        "masspole": Quantity(0.1),
        "length": Quantity(0.5),
        "force_mag": Quantity(10.0, may_be_zero=True),
        "tau": Quantity(0.02),
    }
    n_actions = 2
    places = (0, 2)
    start_low, start_high = (-0.05,) * 4, (0.05,) * 4
    max_position = 2.4
    max_angle = 12 * tau / 360

    def __init__(
        self,
        num_envs: int,
        max_steps: int | None = 500,
        physics: Physics | None = None,
        autoreset: bool = True,
    ):
        super().__init__(num_envs, max_steps, physics, autoreset)

    def _bounds(self, largest: dict[str, float]) -> tuple[list[float], list[float]]:
        high = [2 * self.max_position, np.inf, 2 * self.max_angle, np.inf]
        return [-h for h in high], high

    def _derive(self, physics: np.ndarray) -> np.ndarray:
        _, masscart, masspole, length, _, _ = physics
        return np.stack([*physics, masspole + masscart, masspole * length])

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gravity, _, masspole, length, force_mag, time_step, total_mass, polemass_length = (
            self._constants
        )
        x, x_dot, theta, theta_dot = self._state
        cosine, sine = np.cos(theta), np.sin(theta)
        force = np.where(action == 1, force_mag, -force_mag)
        temp = (force + polemass_length * np.square(theta_dot) * sine) / total_mass
        theta_acc = (gravity * sine - cosine * temp) / (
            length * (4.0 / 3.0 - masspole * np.square(cosine) / total_mass)
        )
        x_acc = temp - polemass_length * theta_acc * cosine / total_mass
        x += time_step * x_dot
        x_dot += time_step * x_acc
        theta += time_step * theta_dot
        theta_dot += time_step * theta_acc
        fallen = (np.abs(x) > self.max_position) | (np.abs(theta) > self.max_angle)
        return np.ones(self.num_envs, np.float32), fallen

    def render_rgb(self, index: int = 0) -> np.ndarray:
        """Return a picture of environment ``index``, (200, 360, 3) uint8."""
        canvas = Canvas(200, 360, PAPER)
        scale, ground = 60.0, 162.0
        lost = 180 - scale * self.max_position
        canvas.rectangle((0, 0), lost, 200, LOST)
        canvas.rectangle((360 - lost, 0), lost, 200, LOST)
        canvas.rectangle((0, ground), 360, 3, GREY)
        x, _, theta, _ = self._state[:, index]
        cart = 180 + scale * x
        length = self._physics[list(self.quantities).index("length"), index]
        axle = (cart, ground - 29)
        tip = (axle[0] + 2 * scale * length * sin(theta), axle[1] - 2 * scale * length * cos(theta))
        for wheel in (cart - 14, cart + 14):
            canvas.disc((wheel, ground - 6), 6, INK)
        canvas.line((cart - 20, ground - 19), (cart + 20, ground - 19), 17, PALETTE["blue"])
        canvas.line(axle, tip, 9, PALETTE["orange"])
        canvas.disc(axle, 3, PAPER)
        return canvas.image()


class BatchedAcrobot(_ClassicWorld):
    """B two-link pendulums to swing up by the joint between the links, as ``Acrobot-v1``.

    The state is (angle of the first link, angle of the second relative to the first [rad], their
    velocities [rad/s]), zero hanging down; observations are (cos, sin of the first angle, cos, sin
    of the second, both velocities). Actions apply a torque of -1, 0 or +1 N m to the joint. Each
    step costs 1 until the tip is one link above the pivot, where the episode terminates at no cost;
    it is truncated after ``max_steps``. It starts with every variable uniform in [-0.1, 0.1].

    Parameters
    ----------
    num_envs : int
    max_steps : int or None
    physics : dict, optional
        Any of link_length_1 [m], link_mass_1, link_mass_2 [kg], link_com_pos_1, link_com_pos_2 [m]
        (centre of mass, from the upper end), link_moi [kg m^2] (of both links), max_vel_1,
        max_vel_2 [rad/s], torque [N m], torque_noise_max [N m] (uniform noise on the torque),
        gravity [m/s^2], dt [s]. A number, an array (B,) or a tuple (low, high), as in
        :class:`BatchedCartPole`. The length of the second link is in no equation, so it is not
        among them; goal and picture keep links of length 1.
    autoreset : bool

    Raises
    ------
    ValueError
        If a name in ``physics`` is unknown, a value impossible or an array of the wrong shape.

    Notes
    -----
    Source: R. Sutton, A. Barto, "Reinforcement learning: an introduction", 1998, section 11.3
    (the equations of the book, not those of the 1996 paper), integrated by one fourth-order
    Runge-Kutta step.
    """

    quantities = {
        "link_length_1": Quantity(1.0),
        "link_mass_1": Quantity(1.0),
        "link_mass_2": Quantity(1.0),
        "link_com_pos_1": Quantity(0.5, may_be_zero=True),
        "link_com_pos_2": Quantity(0.5, may_be_zero=True),
        "link_moi": Quantity(1.0),
        "max_vel_1": Quantity(4 * pi),
        "max_vel_2": Quantity(9 * pi),
        "torque": Quantity(1.0, may_be_zero=True),
        "torque_noise_max": Quantity(0.0, may_be_zero=True),
        "gravity": Quantity(9.8, may_be_zero=True),
        "dt": Quantity(0.2),
    }
    n_actions = 3
    places = (0, 1, 2, 3)
    start_low, start_high = (-0.1,) * 4, (0.1,) * 4

    def __init__(
        self,
        num_envs: int,
        max_steps: int | None = 500,
        physics: Physics | None = None,
        autoreset: bool = True,
    ):
        super().__init__(num_envs, max_steps, physics, autoreset)
        row = list(self.quantities).index("torque_noise_max")
        self._noisy = bool((self._low[row] + self._span[row] > 0).any())

    def _bounds(self, largest: dict[str, float]) -> tuple[list[float], list[float]]:
        high = [1.0, 1.0, 1.0, 1.0, largest["max_vel_1"], largest["max_vel_2"]]
        return [-h for h in high], high

    def _derive(self, physics: np.ndarray) -> np.ndarray:
        l1, m1, m2, c1, c2, moi, max_1, max_2, torque, noise, g, dt = physics
        return np.stack(
            [
                m1 * c1**2,  # the sums and products below group as in gymnasium's equations,
                l1**2 + c2**2,  # because a swing amplifies differences in the last digit
                l1 * c2,
                2 * l1 * c2,
                c2**2,
                m2,
                moi,
                (m1 * c1 + m2 * l1) * g,
                m2 * c2 * g,
                m2 * l1 * c2,
                2 * m2 * l1 * c2,
                m2 * c2**2 + moi,
                max_1,
                max_2,
                torque,
                noise,
                dt,
            ]
        )

    def _observe(self, rows: np.ndarray | slice) -> np.ndarray:
        state = self._state[:, rows]
        obs = np.empty((state.shape[1], 6), np.float32)
        obs[:, 0:4:2] = np.cos(state[:2]).T
        obs[:, 1:4:2] = np.sin(state[:2]).T
        obs[:, 4:] = state[2:].T
        return obs

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        *_, max_1, max_2, torque, noise, dt = self._constants
        torque = (action - 1) * torque
        if self._noisy:
            assert self.streams is not None
            torque = torque + noise * (2 * self.streams.uniform(1)[:, 0] - 1)
        y, half = self._state, dt / 2.0
        k1 = self._velocity(y, torque)
        k2 = self._velocity(y + half * k1, torque)
        k3 = self._velocity(y + half * k2, torque)
        k4 = self._velocity(y + dt * k3, torque)
        y += dt / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        _wrap(y[:2])
        _clip(y[2], -max_1, max_1)
        _clip(y[3], -max_2, max_2)
        up = -np.cos(y[0]) - np.cos(y[1] + y[0]) > 1.0
        return np.where(up, np.float32(0), np.float32(-1)), up

    def _velocity(self, y: np.ndarray, torque: np.ndarray) -> np.ndarray:
        """Return the time derivative (4, B) of the state ``y`` (4, B)."""
        m1c1, squares, l1c2, twice_l1c2, c2c2, m2, moi = self._constants[:7]
        fall_1, fall_2, swing, twice_swing, inner = self._constants[7:12]
        theta1, theta2, dtheta1, dtheta2 = y
        cosine, sine = np.cos(theta2), np.sin(theta2)
        d1 = m1c1 + m2 * (squares + twice_l1c2 * cosine) + moi + moi
        d2 = m2 * (c2c2 + l1c2 * cosine) + moi
        phi2 = fall_2 * np.cos(theta1 + theta2 - pi / 2.0)
        coupling = swing * _square(dtheta2) * sine + twice_swing * dtheta2 * dtheta1 * sine
        phi1 = fall_1 * np.cos(theta1 - pi / 2) - coupling + phi2
        out = np.empty_like(y)
        out[:2] = y[2:]
        out[3] = (torque + d2 / d1 * phi1 - swing * _square(dtheta1) * sine - phi2) / (
            inner - _square(d2) / d1
        )
        out[2] = -(d2 * out[3] + phi1) / d1
        return out

    def render_rgb(self, index: int = 0) -> np.ndarray:
        """Return a picture of environment ``index``, (300, 300, 3) uint8."""
        canvas = Canvas(300, 300, PAPER)
        theta1, theta2 = self._state[:2, index]
        scale, pivot = 66.0, (150.0, 150.0)
        elbow = (pivot[0] + scale * sin(theta1), pivot[1] + scale * cos(theta1))
        both = theta1 + theta2
        tip = (elbow[0] + scale * sin(both), elbow[1] + scale * cos(both))
        for x in range(6, 300, 20):
            canvas.rectangle((x, pivot[1] - scale - 1), 10, 2, PALETTE["green"])
        canvas.line(pivot, elbow, 16, PALETTE["blue"])
        canvas.line(elbow, tip, 16, PALETTE["orange"])
        canvas.disc(pivot, 4, PAPER)
        canvas.disc(elbow, 4, PAPER)
        canvas.disc(tip, 5, INK)
        return canvas.image()


def _square(x: np.ndarray) -> np.ndarray:
    """Return x squared by the C library's ``pow``, as gymnasium's scalars are.

    One time in a thousand ``x * x`` has another last digit, and a swing amplifies it.
    """
    return np.float_power(x, 2)


def _wrap(angle: np.ndarray) -> None:
    """Bring angles into [-pi, pi] in place, a whole turn at a time."""
    while (over := angle > pi).any():
        angle -= 2 * pi * over
    while (under := angle < -pi).any():
        angle += 2 * pi * under


def _clip(x: np.ndarray, low: np.ndarray | float, high: np.ndarray | float) -> None:
    """Clip ``x`` in place; on a few hundred numbers twice as fast as ``np.clip``."""
    np.maximum(x, low, out=x)
    np.minimum(x, high, out=x)


class BatchedMountainCar(_ClassicWorld):
    """B cars too weak for the hill they are to climb, as ``MountainCar-v0``.

    Observations are (position, velocity), also the state; actions push left (0), not at all (1) or
    right (2). Each step costs 1. An episode terminates at position 0.5, the flag, and is truncated
    after ``max_steps``. It starts at rest, at a position uniform in [-0.6, -0.4].

    Parameters
    ----------
    num_envs : int
    max_steps : int or None
    physics : dict, optional
        Any of force, gravity (both per step squared) and max_speed (per step). A number, an array
        (B,) or a tuple (low, high), as in :class:`BatchedCartPole`.
    autoreset : bool

    Raises
    ------
    ValueError
        If a name in ``physics`` is unknown, a value impossible or an array of the wrong shape.

    Notes
    -----
    Source: A. Moore, "Efficient memory-based learning for robot control", PhD thesis, 1990.
    """

    quantities = {
        "force": Quantity(0.001, may_be_zero=True),
        "gravity": Quantity(0.0025, may_be_zero=True),
        "max_speed": Quantity(0.07),
    }
    n_actions = 3
    places = (0,)
    start_low, start_high = (-0.6, 0.0), (-0.4, 0.0)
    min_position, max_position, goal_position = -1.2, 0.6, 0.5

    def __init__(
        self,
        num_envs: int,
        max_steps: int | None = 200,
        physics: Physics | None = None,
        autoreset: bool = True,
    ):
        super().__init__(num_envs, max_steps, physics, autoreset)

    def _bounds(self, largest: dict[str, float]) -> tuple[list[float], list[float]]:
        speed = largest["max_speed"]
        return [self.min_position, -speed], [self.max_position, speed]

    def _derive(self, physics: np.ndarray) -> np.ndarray:
        return physics

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        force, gravity, max_speed = self._constants
        position, velocity = self._state
        velocity += (action - 1) * force - np.cos(3 * position) * gravity
        _clip(velocity, -max_speed, max_speed)
        position += velocity
        _clip(position, self.min_position, self.max_position)
        velocity[(position == self.min_position) & (velocity < 0)] = 0.0  # the wall on the left
        there = (position >= self.goal_position) & (velocity >= 0)
        return np.full(self.num_envs, -1, np.float32), there

    def render_rgb(self, index: int = 0) -> np.ndarray:
        """Return a picture of environment ``index``, (240, 360, 3) uint8."""
        canvas = Canvas(240, 360, PAPER)
        ground, _, up = _hill(np.linspace(self.min_position - 0.1, self.max_position + 0.1, 71))
        for depth, colour in ((0, INK), (3, HILL)):
            surface = ground - depth * up
            canvas.polygon(np.concatenate([surface, [(400, 240), (-40, 240)]]), colour)
        (x, y), _, _ = _hill(self.goal_position)
        canvas.line((x, y), (x, y - 44), 3, INK)
        canvas.polygon([(x, y - 45), (x + 24, y - 37), (x, y - 29)], PALETTE["vermilion"])
        foot, along, up = _hill(self._state[0, index])
        axle = foot + 6 * up
        canvas.line(axle - 13 * along + 9 * up, axle + 13 * along + 9 * up, 12, PALETTE["blue"])
        canvas.line(axle - 5 * along + 16 * up, axle + 4 * along + 16 * up, 9, PALETTE["blue"])
        for wheel in (axle - 11 * along, axle + 11 * along):
            canvas.disc(wheel, 6, INK)
            canvas.disc(wheel, 2, PAPER)
        return canvas.image()


def _hill(position: np.ndarray | float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ground's point in the picture, its direction and its normal, each (..., 2)."""
    position = np.asarray(position)
    point = np.stack([190 * (position + 1.25), 212 - 72 * (np.sin(3 * position) + 1)], axis=-1)
    slope = np.arctan2(-216 * np.cos(3 * position), 190.0)
    along = np.stack([np.cos(slope), np.sin(slope)], axis=-1)
    return point, along, np.stack([along[..., 1], -along[..., 0]], axis=-1)


class CartPole(GymnasiumFace):
    """One :class:`BatchedCartPole` world as a gymnasium environment.

    Parameters
    ----------
    render_mode : {"rgb_array", None}
    options : as for :class:`BatchedCartPole`, without ``num_envs`` and ``autoreset``.
    """

    def __init__(self, render_mode: str | None = None, **options: Any):
        super().__init__(BatchedCartPole(1, autoreset=False, **options), render_mode)


class Acrobot(GymnasiumFace):
    """One :class:`BatchedAcrobot` world as a gymnasium environment.

    Parameters
    ----------
    render_mode : {"rgb_array", None}
    options : as for :class:`BatchedAcrobot`, without ``num_envs`` and ``autoreset``.
    """

    metadata = {**GymnasiumFace.metadata, "render_fps": 15}

    def __init__(self, render_mode: str | None = None, **options: Any):
        super().__init__(BatchedAcrobot(1, autoreset=False, **options), render_mode)


class MountainCar(GymnasiumFace):
    """One :class:`BatchedMountainCar` world as a gymnasium environment.

    Parameters
    ----------
    render_mode : {"rgb_array", None}
    options : as for :class:`BatchedMountainCar`, without ``num_envs`` and ``autoreset``.
    """

    metadata = {**GymnasiumFace.metadata, "render_fps": 30}

    def __init__(self, render_mode: str | None = None, **options: Any):
        super().__init__(BatchedMountainCar(1, autoreset=False, **options), render_mode)
