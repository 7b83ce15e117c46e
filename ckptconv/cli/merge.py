"""ckptconv merge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ckptconv.cli import options as o

_MERGING = "What is merged"
_WRITING = "How it is written"
_STEPS = "All steps of a run"


def command(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="The checkpoint: run, step or role folder.")
    ] = None,
    out: Annotated[Optional[Path], typer.Argument(metavar="OUT", help="The model folder to write.")] = None,  # noqa: UP045
    backend: o.Backend = None,
    step: o.Step = None,
    also: o.Also = None,
    config: o.Config = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help="auto, keep, or float32, bfloat16, float16 for all floats.",
            rich_help_panel=_MERGING,
        ),
    ] = "auto",
    lora: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--lora", help="merge, adapter or both, where LoRA tensors are stored.", rich_help_panel=_MERGING
        ),
    ] = None,
    lora_alpha: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--lora-alpha", help="LoRA's alpha, where no file says it.", rich_help_panel=_MERGING),
    ] = None,
    base: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--base",
            help="Base model, a folder or org/name on the Hub, for checkpoints of LoRA tensors alone.",
            rich_help_panel=_MERGING,
        ),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout", help="Names and layouts: hub, or module as trained.", rich_help_panel=_MERGING
        ),
    ] = "hub",
    mtp: Annotated[
        str,
        typer.Option("--mtp", help="Multi-token prediction layers: keep or drop.", rich_help_panel=_MERGING),
    ] = "keep",
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", help="Largest file.", rich_help_panel=_WRITING)
    ] = "5GB",
    max_memory: Annotated[
        str, typer.Option("--max-memory", help="Bound on all buffers together.", rich_help_panel=_WRITING)
    ] = "256MiB",
    workers: o.Workers = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace OUT, once the new one is whole.", rich_help_panel=_WRITING),
    ] = False,
    check_replicas: Annotated[
        bool,
        typer.Option(
            "--check-replicas", help="Read the copies too, and compare their bytes.", rich_help_panel=_WRITING
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read what was written again, by safetensors' own reader, and compare it with DIR before OUT appears.",
            rich_help_panel=_WRITING,
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and write nothing.", rich_help_panel=_WRITING)
    ] = False,
    ray: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Write on a Ray cluster, a file a task: auto (RAY_ADDRESS, or the cluster that this node is in) or "
            "HOST:PORT. All nodes must see DIR and OUT; --workers and --max-memory are a task's.",
            rich_help_panel=_WRITING,
        ),
    ] = None,
    all_steps: Annotated[
        bool,
        typer.Option(
            "--all-steps",
            help="Every step of the run DIR that is not there yet, into OUT/STEP.",
            rich_help_panel=_STEPS,
        ),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="As --all-steps, and then each new step once it is whole, until Ctrl-C.",
            rich_help_panel=_STEPS,
        ),
    ] = False,
    upload: o.UploadPath = None,
    private: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--private/--no-private", help="With --push: visibility of a new repository."),
    ] = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    local_dir: o.LocalDir = None,
    target_dir: o.TargetDir = None,
    tie: o.Tie = False,
    value_model: o.ValueModel = False,
    remote_code: o.RemoteCode = False,
    cpu_init: o.CpuInit = False,
    model_path: o.ModelPath = None,
) -> None:
    """Turn a checkpoint into a Hugging Face model folder.

    Backend, latest step, dtype, tied head, value head and LoRA are found from the files and said. The folder appears
    whole or not at all; a run that was killed is resumed by the same command.

    Example: ckptconv merge checkpoints/run MODEL

    verl's lines work as they are: merge --backend fsdp --local_dir D --target_dir O [--hf_upload_path org/name].
    """
    from ckptconv.cli.merge_steps import every_step
    from ckptconv.cli.push import push_and_show
    from ckptconv.commands.merge.run import Events, merge
    from ckptconv.commands.push.run import check_push
    from ckptconv.errors import CkptconvError
    from ckptconv.plan import Options
    from ckptconv.show import merge as show
    from ckptconv.show.sink import Sink

    _one_of("--lora", lora, (None, "merge", "adapter", "both"))
    _one_of("--layout", layout, ("hub", "module"))
    _one_of("--mtp", mtp, ("keep", "drop"))
    _one_of("--dtype", dtype, ("auto", "keep", "float32", "bfloat16", "float16"))
    cluster = o.cluster(ray)
    source = o.one_of(directory, local_dir, "the checkpoint folder", "--local_dir")
    default = (
        Path("tmp") if local_dir is not None and target_dir is None and out is None else None
    )  # verl's own default
    target = default or o.one_of(out, target_dir, "the model folder to write", "--target_dir")
    sink = Sink(as_json=json, quiet=quiet)

    writing = show.Writing(sink)
    pushing = bool(upload) and not dry_run

    def on_plan(plan: show.Plan) -> None:
        if value_model and not any("score." in name or "v_head." in name for name in plan.outputs):
            raise CkptconvError("--is-value-model, but no value head is stored", where=plan.checkpoint.root)
        sink.phase("Reading", show.summary(plan))
        sink.phase("Planning", show.planned(plan))
        for note in plan.notes:
            sink.note(note)
        if pushing:
            check_push(target, str(upload), private=private)  # now, not after hours of writing
        if not dry_run:
            writing.start(plan)

    choices: dict[str, Any] = {
        "options": Options(dtype, lora, lora_alpha, layout, max_shard_size, mtp),
        "backend": backend,
        "also": also or (),
        "config": config,
        "base": base,
        "overwrite": overwrite,
        "dry_run": dry_run,
        "max_memory": o.memory(max_memory),
        "workers": workers,
        "check_replicas": check_replicas,
        "verify": verify,
        "events": Events(
            on_plan,
            writing.on_bytes,
            writing.check,
            lambda said: sink.phase("Fetching", said),
            bars=sink.live,
        ),
        "ray": cluster,
    }
    if all_steps or watch:
        if upload or step is not None or also:
            raise CkptconvError(
                "--all-steps and --watch go with neither --step nor --also nor --push",
                hint="push the step that you want: ckptconv push OUT/STEP org/name [--revision STEP]"
                if upload
                else None,
            )
        every_step(sink, writing, source, target, watch, choices)
        return
    with writing:
        result = merge(source, target, step=step, **choices)
    record = show.record(result)
    if not (pushing and json):  # one JSON document, of both
        sink.result(show.done(result), record, quiet=str(target))
    if pushing:
        push_and_show(sink, target, str(upload), record, private=private)


def _one_of(flag: str, value: object, allowed: tuple[object, ...]) -> None:
    from ckptconv.errors import CkptconvError

    if value not in allowed:
        raise CkptconvError(
            f"{flag} {value} is not known", wanted=", ".join(str(item) for item in allowed if item)
        )
