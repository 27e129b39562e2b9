"""One training run: its configuration, its folder, and what is kept of it."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from marl_lib.algorithms.dqn import DQN, DQNConfig
from marl_lib.algorithms.maddpg import MADDPG, MADDPGConfig
from marl_lib.algorithms.ppo import PPO, AttentionPPOConfig, IPPOConfig, MAPPOConfig, PPOConfig
from marl_lib.algorithms.pqn import PQN, PQNConfig, PQNVDNConfig
from marl_lib.algorithms.qmix import QMIX, WQMIX, QMIXConfig, VDNConfig, WQMIXConfig
from marl_lib.algorithms.sac import SAC, SACConfig
from marl_lib.checkpoint import checkpoint
from marl_lib.config import (
    ConfigError,
    Count,
    Natural,
    choice,
    from_mapping,
    merge,
    read_yaml,
    require,
    to_mapping,
)
from marl_lib.envs import BatchedParallelEnv, entry, make
from marl_lib.learner import Learner, LearnerConfig
from marl_lib.seeding import check_seed
from marl_lib.training import (
    EVALUATION_SEED,
    LoopConfig,
    MakeEnv,
    Trainer,
    TrainingResult,
)

CONFIGS = Path(__file__).parent / "configs"

# Name of each algorithm -> its class and its settings.
ALGORITHMS: dict[str, tuple[type[Learner], type[LearnerConfig]]] = {
    "dqn": (DQN, DQNConfig),
    "vdn": (QMIX, VDNConfig),
    "qmix": (QMIX, QMIXConfig),
    "wqmix": (WQMIX, WQMIXConfig),
    "pqn": (PQN, PQNConfig),
    "pqn_vdn": (PQN, PQNVDNConfig),
    "ppo": (PPO, PPOConfig),
    "attention_ppo": (PPO, AttentionPPOConfig),
    "ippo": (PPO, IPPOConfig),
    "mappo": (PPO, MAPPOConfig),
    "maddpg": (MADDPG, MADDPGConfig),
    "sac": (SAC, SACConfig),
}


@dataclass(frozen=True)
class RunConfig(LoopConfig):
    """What is trained on what, for how long.

    The dataclass of a particular run (:func:`run_config_type`) adds ``env_options`` and a section
    named like the algorithm.

    Parameters
    ----------
    env, algorithm : str
        See ``marl list``; the algorithm is by default dqn on the grid world, attention_ppo for one
        agent, mappo for several.
    seed : int
        The first seed.
    replicates : int
        Seeds ``seed``, ``seed + 1``, ... trained side by side in one process.
    num_envs : int
        Environments of each replicate.
    device : str
        "cpu", "cuda", ...; "auto" for CUDA where there is one and the updates are large enough to
        gain by it, see :func:`placed`.
    capture : bool
        On CUDA, record what computes the gradients as a CUDA graph and replay it.
    threads : int or None
        Of torch; one is fastest for small networks. ``None`` leaves torch's choice.
    """

    env: str = "GridWorld"
    algorithm: str = "dqn"
    seed: Natural = 0
    replicates: Count = 1
    num_envs: Count = 64
    device: str = "auto"
    capture: bool = False
    threads: Count | None = 1

    def check(self) -> None:
        """Refuse what cannot be run."""
        rule = f"such that no replicate trains on the worlds of evaluation, {EVALUATION_SEED}"
        require(self.seed + self.replicates <= EVALUATION_SEED, "seed", self.seed, rule)
        try:
            torch.empty(0, device=None if self.device == "auto" else self.device)
        except (RuntimeError, AssertionError) as error:
            cause = str(error).splitlines()[0]
            raise ConfigError(f"device {self.device!r} cannot be used: {cause}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes as values: a class made on the way would come as a copy."""
        return load_mapping, (to_mapping(self),)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the replicates."""
        return [check_seed(self.seed) + i for i in range(self.replicates)]


@functools.cache
def run_config_type(env: str, algorithm: str) -> type[RunConfig]:
    """Return the dataclass of runs of ``algorithm`` on ``env``, with their own sections.

    Raises
    ------
    ConfigError
        If either name is unknown.
    """
    options = entry(env).options
    settings = ALGORITHMS[choice("algorithm", algorithm, ALGORITHMS)][1]
    return dataclasses.make_dataclass(
        "RunConfig",
        [
            ("env_options", options, dataclasses.field(default_factory=options)),
            (algorithm, settings, dataclasses.field(default_factory=settings)),
        ],
        bases=(RunConfig,),
        namespace={"__doc__": RunConfig.__doc__},
        frozen=True,
    )


def shipped(folder: Path = CONFIGS) -> dict[str, Path]:
    """Return the configurations that come with the library, by name."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name_or_path: str) -> dict[str, Any]:
    """Return a configuration by the name it ships under, or from a file."""
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        return read_yaml(name_or_path)
    return read_yaml(shipped()[choice("configuration", name_or_path, shipped())])


ONE_AGENT = ("ColourMatch", "CartPole-v1", "Acrobot-v1", "MountainCar-v0")

# Names of a published configuration of attention PPO -> ours
OTHER_NAMES = {
    "env_name": "env",
    "total_timesteps": "timesteps",
    "eval_freq": "eval_every",
    "n_eval_episodes": "eval_episodes",
}


def _own_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in our names, where it uses those of ``OTHER_NAMES``.

    Sections ``ppo`` and ``attention`` beside each other are the settings of ``attention_ppo``.
    """
    own: dict[str, Any] = {}
    for key, value in values.items():
        name = OTHER_NAMES.get(key, key)
        if name in own:
            raise ConfigError(f"the configuration key {name} is given twice, once as {key}")
        own[name] = value
    if "attention" in own and own.setdefault("algorithm", "attention_ppo") == "attention_ppo":
        parts = [own.pop(k, None) or {} for k in ("ppo", "attention", "attention_ppo")]
        for name, part in zip(("ppo", "attention"), parts, strict=False):
            require(isinstance(part, Mapping), name, part, "a mapping")
        ppo, attention, both = parts
        own["attention_ppo"] = merge(ppo, {"encoder": {"kind": "attention", **attention}}, both)
    return own


def default_algorithm(env: str, given: Mapping[str, Any]) -> str:
    """Return the algorithm whose settings are given, or what is usual for a world."""
    sections = [name for name in ALGORITHMS if name in given]
    if len(sections) == 1:
        return sections[0]
    if env == "GridWorld":
        return "dqn"
    alone = env in ONE_AGENT or str(env).startswith("gymnasium:")
    return "attention_ppo" if alone else "mappo"


def run_config(*layers: Mapping[str, Any]) -> RunConfig:
    """Build the configuration of a run from mappings, later ones over earlier ones.

    Where no layer names the algorithm, it is the one that has a section, else the world's usual.

    What no layer says comes from the configuration shipped for that world and algorithm, if there
    is one (``gridworld-dqn`` for DQN on the grid world), else from the defaults.
    """
    own = [_own_names(layer) for layer in layers]
    given = merge(*own)
    env = given.get("env", RunConfig.env)
    algorithm = given.get("algorithm", default_algorithm(env, given))
    for name, value in (("env", env), ("algorithm", algorithm)):
        require(isinstance(value, str), name, value, "a name")
    kind = run_config_type(env, algorithm)
    name = f"{env}-{algorithm}".lower()
    base = read_yaml(shipped()[name]) if name in shipped() else {}
    # Over the defaults one by one: a layer that changes the kind of a section starts it anew.
    return from_mapping(kind, merge(to_mapping(kind()), base, *own, {"algorithm": algorithm}))


def world_maker(config: RunConfig, autoreset: bool = True) -> MakeEnv:
    """Return ``make_env(num_envs)`` for the world of a run."""
    options = config.env_options  # type: ignore[attr-defined]
    return partial(_make, config.env, options, autoreset)


def _make(env: str, options: Any, autoreset: bool, num_envs: int) -> BatchedParallelEnv:
    return make(env, num_envs, options, autoreset)  # a function of the module, so it pickles


def build_learner(config: RunConfig, env: BatchedParallelEnv) -> Learner:
    """Return the untrained learner of a run; ``env`` is any batch of its world.

    Raises
    ------
    ConfigError
        If the algorithm does not go with the world.
    """
    kind, _ = ALGORITHMS[config.algorithm]
    _, info = env.reset(seed=0)
    device = placed(config).device
    return kind(
        env.sizes(info),
        config.num_envs,
        config.seeds,
        getattr(config, config.algorithm),
        total_steps=config.timesteps,
        device=device,
        capture=config.capture and device.startswith("cuda"),
    )


# An update costs a GPU its 600 or so launches, some 5 ms, whatever its size; a core of a CPU makes
# 25 multiplications a nanosecond, and an update is three times its pass forward. An estimate:
# ``python -m benchmarks.device`` shows where the two meet on a machine.
CUDA_PAYS = 40_000_000  # multiplications of a pass forward


def placed(config: RunConfig) -> RunConfig:
    """Return the configuration with "auto" replaced by the device that it stands for."""
    if config.device != "auto":
        return config
    device = "cpu"
    if torch.cuda.is_available():
        work = build_learner(replace(config, device="cpu"), world_maker(config)(1)).work
        device = "cuda" if work >= CUDA_PAYS else "cpu"
    return replace(config, device=device)


def make_trainer(config: RunConfig, folder: Path | None = None, progress: bool = True) -> Trainer:
    """Return the trainer of a run, ready to start or to resume."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)  # dropout draws from torch's generator
    make_env = world_maker(config)
    learner = build_learner(config, make_env(1))
    return Trainer(make_env, learner, config, folder, progress)


def train(config: RunConfig, folder: str | Path, progress: bool = True) -> TrainingResult:
    """Train in a new folder: config.yaml, log.jsonl, tensorboard/, checkpoint.pt, summary.json.

    Raises
    ------
    ConfigError
        If the folder already holds a run.
    """
    folder = Path(folder)
    if (folder / "config.yaml").exists():
        raise ConfigError(
            f"{folder} already holds a run; resume it with `marl train --resume {folder}` "
            "or choose another --folder"
        )
    config = placed(config)  # resumed on the same device
    trainer = make_trainer(config, folder, progress)
    trainer.save()  # so that a run stopped at any time can be resumed
    (folder / "config.yaml").write_text(yaml.safe_dump(to_mapping(config), sort_keys=False))
    return _finish(trainer, folder)


def resume(folder: str | Path, progress: bool = True) -> TrainingResult:
    """Go on with the run in ``folder`` from its checkpoint, to the same end as without a break."""
    folder = Path(folder)
    trainer = make_trainer(load_config(folder), folder, progress)
    trainer.resume()
    return _finish(trainer, folder)


def _finish(trainer: Trainer, folder: Path) -> TrainingResult:
    result = trainer.train()
    (folder / "summary.json").write_text(json.dumps(result.summary(), indent=2) + "\n")
    return result


def load_config(folder: str | Path) -> RunConfig:
    """Return the configuration of the run in ``folder``."""
    return load_mapping(read_yaml(Path(folder) / "config.yaml"))


def load_mapping(values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that :func:`marl_lib.config.to_mapping` wrote."""
    kind = run_config_type(values.get("env", RunConfig.env), values.get("algorithm", ""))
    return from_mapping(kind, values)


def load_learner(folder: str | Path) -> tuple[RunConfig, Learner]:
    """Return the configuration and the trained learner of the run in ``folder``."""
    config = load_config(folder)
    learner = build_learner(config, world_maker(config)(1))
    with checkpoint(Path(folder) / "checkpoint.pt") as state:
        learner.load_state_dict(state["learner"])
    return config, learner


def provenance() -> dict[str, Any]:
    """Return what a result depends on beside its configuration: code, packages, machine, day."""
    packages = ("marl-lib", "torch", "numpy", "gymnasium", "pettingzoo")
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "machine": f"{platform.machine()}, {_processor()}",
        "date": datetime.date.today().isoformat(),
    }


def _commit() -> str:
    """Return the commit the library was run from, with + if files differ from it."""
    here = Path(__file__).parent
    git = partial(subprocess.run, capture_output=True, text=True, cwd=here)
    # A repository around an environment that the package is installed in does not know this file.
    if not shutil.which("git") or git(["git", "ls-files", "--error-unmatch", __file__]).returncode:
        return f"release {importlib.metadata.version('marl-lib')}"
    found = git(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
    changed = git(["git", "status", "--porcelain", "--", str(here)]).stdout.strip()
    return found + ("+" if changed else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor() or "unknown processor"
