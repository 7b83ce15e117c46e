"""ckptconv merge."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ckptconv.cli import options as o

_MODEL = "Model options"
_OUTPUT = "Output options"
_STEPS = "Multiple steps"
_USAGE = "ckptconv merge DIR OUT"


def command(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Checkpoint: run, step or role folder, also in a store (s3://…)."),
    ] = None,
    out: Annotated[Optional[Path], typer.Argument(metavar="OUT", help="Model folder to write.")] = None,  # noqa: UP045
    backend: o.Backend = None,
    step: o.Step = None,
    also: o.Also = None,
    config: o.Config = None,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            metavar="[auto|keep|float32|bfloat16|float16]",
            autocompletion=lambda: ("auto", "keep", "float32", "bfloat16", "float16"),
            help="Dtype of the weights. auto: the dtype the model is served in; keep: as stored.",
            rich_help_panel=_MODEL,
        ),
    ] = "auto",
    lora: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--lora",
            metavar="[merge|adapter|both]",
            autocompletion=lambda: ("merge", "adapter", "both"),
            help="For LoRA checkpoints: write the merged model, the adapter, or both.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    lora_alpha: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            "--lora-alpha",
            metavar="N",
            help="LoRA alpha, if the checkpoint does not record it.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    base: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--base",
            metavar="DIR",
            help="Base model (folder, s3://… or Hub repo); needed when the checkpoint holds only LoRA weights.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            metavar="[hub|module]",
            autocompletion=lambda: ("hub", "module"),
            help="Tensor names: hub (as published on the Hub) or module (as in the training process).",
            rich_help_panel=_MODEL,
        ),
    ] = "hub",
    mtp: Annotated[
        str,
        typer.Option(
            "--mtp",
            metavar="[keep|drop]",
            autocompletion=lambda: ("keep", "drop"),
            help="Keep or drop multi-token prediction layers.",
            rich_help_panel=_MODEL,
        ),
    ] = "keep",
    keep_config: Annotated[
        bool,
        typer.Option(
            "--keep-config",
            help="Add nothing to config.json and tokenizer_config.json for the other transformers generation (4 or 5).",
            rich_help_panel=_MODEL,
        ),
    ] = False,
    max_shard_size: Annotated[
        str,
        typer.Option(
            "--max-shard-size",
            metavar="SIZE",
            help="Maximum size of each output file, e.g. 5GB.",
            rich_help_panel=_OUTPUT,
        ),
    ] = "5GB",
    max_memory: Annotated[
        str,
        typer.Option(
            "--max-memory",
            metavar="SIZE",
            help="Upper limit for all buffers, e.g. 1GiB.",
            rich_help_panel=_OUTPUT,
        ),
    ] = "256MiB",
    workers: o.Workers = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace OUT after the new model is complete.", rich_help_panel=_OUTPUT
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume",
            help="Go on with the complete files of a run that was stopped; --no-resume begins anew and keeps none.",
            rich_help_panel=_OUTPUT,
        ),
    ] = True,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="GLOB",
            help="Also copy matching files next to config.json. By default only known files of a model are copied: "
            "tokenizer, processor, templates, custom code, licence. Repeatable.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    check_replicas: Annotated[
        bool,
        typer.Option(
            "--check-replicas",
            help="Also read replicated tensors and check that all copies are identical.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Re-read the output with safetensors and compare it with DIR before publishing OUT.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and write nothing.", rich_help_panel=_OUTPUT)
    ] = False,
    ray: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Write on a Ray cluster, one task per file: auto (RAY_ADDRESS, or the cluster this node is in) or "
            "HOST:PORT. All nodes must see DIR and OUT; --workers and --max-memory apply to each task.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    all_steps: Annotated[
        bool,
        typer.Option(
            "--all-steps",
            help="Convert every step of the run that OUT does not have yet, each into OUT/<step>.",
            rich_help_panel=_STEPS,
        ),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Like --all-steps, then keep watching and convert new steps as they are finished, until Ctrl-C.",
            rich_help_panel=_STEPS,
        ),
    ] = False,
    upload: o.UploadPath = None,
    private: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--private/--no-private",
            help="With --push: make a new repo private or public. Default: your account's setting.",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="List every tensor with what it is made of, on stderr.")
    ] = False,
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

    Format, latest step, dtype, tied embeddings, value head and LoRA are detected and reported. OUT appears complete or
    not at all; to resume a merge that was stopped, run the same command again.

    Example: ckptconv merge checkpoints/run MODEL

    verl's command lines work unchanged: merge --backend fsdp --local_dir D --target_dir O [--hf_upload_path org/name].
    """
    from ckptconv.commands.merge.run import merge
    from ckptconv.errors import CkptconvError, Kind
    from ckptconv.plan import Options
    from ckptconv.show import merge as show
    from ckptconv.show.progress import ProgressShown
    from ckptconv.show.sink import Sink

    chosen: dict[str, Any] = {  # words from the command line: Options says which ones it accepts
        "dtype": dtype,
        "lora": lora,
        "lora_alpha": lora_alpha,
        "layout": layout,
        "max_shard_size": max_shard_size,
        "mtp": mtp,
        "keep_config": keep_config,
    }
    Options(**chosen)  # checks the values before anything is read
    if private is not None and not upload:
        raise CkptconvError(
            "--private and --no-private are for --push, which is not given",
            hint="add --push ORG/NAME, or omit them",
            kind=Kind.USAGE,
        )
    cluster = o.cluster(ray)
    source = o.one_of(directory, local_dir, "DIR", "--local_dir", _USAGE)
    default = (
        Path("tmp") if local_dir is not None and target_dir is None and out is None else None
    )  # verl's own default
    target = default or o.one_of(out, target_dir, "OUT", "--target_dir", _USAGE)
    sink = Sink(as_json=json, quiet=quiet)

    shown = ProgressShown(sink)
    pushing = bool(upload) and not dry_run

    def on_plan(plan: show.Plan) -> None:
        if value_model and not any("score." in name or "v_head." in name for name in plan.outputs):
            raise CkptconvError(
                "--is-value-model was given, but the checkpoint has no value head",
                where=plan.checkpoint.root,
                hint="remove --is-value-model",
                kind=Kind.DOES_NOT_FIT,
            )
        sink.phase("Reading", show.summary(plan))
        if tie and (plan.config or {}).get("tie_word_embeddings") is False:
            sink.note(
                "--tie-word-embedding changes nothing: config.json says that the head is a weight of its own"
            )
        sink.phase("Planning", show.planned(plan))
        if plan.dtype_summary:
            sink.phase("Dtype", plan.dtype_summary)
        if plan.config_summary:
            sink.phase("Config", plan.config_summary)
        for note in plan.notes:
            sink.note(note)
        if verbose:
            for line in show.every_tensor(plan):
                sink.detail(line)
        if pushing:
            from ckptconv.commands.push.run import check_push

            check_push(target, str(upload), private=private)  # now, not after hours of writing
        shown.writes = show.written(plan)

    choices: dict[str, Any] = {
        "options": Options(**chosen),
        "backend": backend,
        "also": also or (),
        "config": config,
        "base": base,
        "overwrite": overwrite,
        "dry_run": dry_run,
        "max_memory": o.memory(max_memory),
        "workers": workers,
        "check_replicas": check_replicas,
        "resume": resume,
        "include": include or (),
        "verify": verify,
        "on_plan": on_plan,
        "on_progress": shown,
        "bars": sink.live,
        "ray": cluster,
    }
    if all_steps or watch:
        if upload or step is not None or also:
            raise CkptconvError(
                "--all-steps and --watch cannot be combined with --step, --also or --push",
                hint="push one step after the merge: ckptconv push OUT/STEP org/name [--revision STEP]"
                if upload
                else None,
                kind=Kind.USAGE,
            )
        from ckptconv.cli.merge_steps import every_step

        every_step(sink, shown, source, target, watch, choices)
        return
    with shown:
        result = o.with_model_path(sink, model_path, choices, partial(merge, source, target, step=step))
    show.notes(sink, result)
    record = show.record(result) if json else {}
    if not (pushing and json):  # with both, the push prints one JSON document
        sink.result(show.done(result), record, quiet=str(target))
        if not pushing and (then := show.next_command(result, choices["config"], choices["base"])):
            sink.command("Next", then)
    if pushing:
        from ckptconv.cli.push import push_and_show

        push_and_show(sink, target, str(upload), record, private=private)
