"""The same work on Apache Beam, for cohorts that outgrow one machine.

Lists of work travel in files on the file system that all workers share, not in the pipeline's
description: runners refuse descriptions of more than a few MB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import operator
import pickle
import secrets
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import create_runner

from drenet_jax.data.staging import read_examples, write_pickles
from drenet_jax.errors import InputError, one_line

# Small enough that many workers start early, large enough that the names of the files fit into a
# pipeline's description: 100,000 for 100 million persons.
_ITEMS_A_FILE = 1000

_LOCAL_RUNNER = "FnApiRunner"


@dataclasses.dataclass(frozen=True)
class Beam:
    """Where the work is done.

    Attributes:
      runner: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner or another one of Beam's.
      options: Beam's own flags, as on a command line.
    """

    runner: str
    options: str

    def __post_init__(self) -> None:
        """Checks the runner and its options.

        Raises:
          InputError: there is no such runner, or the options cannot be read.
        """
        try:
            create_runner(self.runner)
        except (AttributeError, ImportError, ValueError) as error:
            raise InputError(
                f"--runner={self.runner} is not known; use DirectRunner, FlinkRunner, SparkRunner, "
                "DataflowRunner or another runner of Apache Beam."
            ) from error
        usage = io.StringIO()
        try:
            with contextlib.redirect_stderr(usage):
                unknown = self._unknown_options()
        except (SystemExit, ValueError) as error:
            # Of argparse, after a page of usage.
            why = usage.getvalue().rpartition("error: ")[2].strip() or str(error)
            raise InputError(
                f"--pipeline_options={self.options} cannot be read ({why}); "
                "write Beam's flags as on a command line."
            ) from error
        # Other runners have options that Beam learns of from their servers.
        if unknown and self.tfds_runner == _LOCAL_RUNNER:
            raise InputError(
                f"--pipeline_options={self.options}: the {self.runner} has no option "
                f"{', '.join(unknown)}; see the page of Beam's DirectRunner."
            )

    def _unknown_options(self) -> list[str]:
        options = self.pipeline_options()
        known = options.get_all_options()
        return sorted(set(options.get_all_options(retain_unknown_options=True)) - set(known))

    @property
    def tfds_runner(self) -> str:
        """The runner as TFDS takes it.

        Beam's DirectRunner would first download another runner, Prism, and run that.
        """
        return _LOCAL_RUNNER if self.runner.lower() in ("direct", "directrunner") else self.runner

    def pipeline_options(self) -> PipelineOptions:
        """The options, from `options` alone: by itself Beam would read this process's flags."""
        options = PipelineOptions(shlex.split(self.options))
        options.view_as(StandardOptions).no_wait_until_finish = False
        return options

    def map_in_order(
        self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], work: Path
    ) -> Iterator[Any]:
        """`function(*task)` of every task, in the order of the tasks, once all are done.

        Args:
          function: at the top level of a module that the workers can import.
          tasks: arguments, which are pickled.
          work: a folder for passing files, which this process and all workers see.

        Raises:
          InputError: the runner lacks an option.
        """
        results = work / f"results-{secrets.token_hex(4)}"
        results.mkdir()
        with self._pipeline() as pipeline:
            _ = (
                pipeline
                | "Tasks" >> self._items(enumerate(tasks), work)
                | "Work" >> apache_beam.Map(_do, function)
                | "Group" >> apache_beam.GroupByKey()
                | "Write" >> apache_beam.Map(_write_results, results)
            )
        for file in sorted(results.glob("[0-9]*")):
            yield from pickle.loads(file.read_bytes())

    def _pipeline(self) -> apache_beam.Pipeline:
        try:
            return apache_beam.Pipeline(self.tfds_runner, self.pipeline_options())
        except ValueError as error:
            raise InputError(
                f"--runner={self.runner} needs other --pipeline_options ({one_line(error)}); "
                "see the runner's page in Beam's documentation."
            ) from error

    def examples(
        self, staging_folder: Iterable[Path], work: Path
    ) -> apache_beam.PTransform[Any, Any]:
        """A transform that makes the collection of the staged examples with their keys."""
        return self._items(staging_folder, work) | "ReadStaged" >> apache_beam.FlatMap(
            read_examples
        )

    def _items(self, items: Iterable[Any], work: Path) -> apache_beam.PTransform[Any, Any]:
        """A transform that makes the collection of `items`, each on whatever worker is free."""
        lists = work / f"lists-{secrets.token_hex(4)}"
        lists.mkdir()
        files: list[Path] = []
        items = iter(items)
        while some := list(itertools.islice(items, _ITEMS_A_FILE)):
            files.append(lists / f"{len(files):08d}.pickle")
            write_pickles(files[-1], some)
        return (
            apache_beam.Create([str(file) for file in files])
            | "SpreadLists" >> apache_beam.Reshuffle()
            | "ReadLists" >> apache_beam.FlatMap(_read_list)
            | "SpreadItems" >> apache_beam.Reshuffle()
        )


def _read_list(file: str) -> list[Any]:
    return pickle.loads(Path(file).read_bytes())


def _do(
    numbered_task: tuple[int, tuple[Any, ...]], function: Callable[..., Any]
) -> tuple[int, tuple[int, Any]]:
    number, task = numbered_task
    return number // _ITEMS_A_FILE, (number, function(*task))


def _write_results(group: tuple[int, Iterable[tuple[int, Any]]], folder: Path) -> None:
    number, results = group
    in_order = [result for _, result in sorted(results, key=operator.itemgetter(0))]
    write_pickles(folder / f"{number:08d}.pickle", in_order)
