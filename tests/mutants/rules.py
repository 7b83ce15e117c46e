"""The rules that `python -m tests.mutants` takes out, and the test that each has to fail."""

from __future__ import annotations

from typing import NamedTuple

_TRUST = "tests/commands/merge/test_merge_trust.py"
_WHOLE = "tests/end_to_end/test_the_folder_is_a_model.py"
_MEGATRON = "tests/backends/test_megatron_settings.py"
_ONE_SAVE = "tests/backends/test_deepspeed_one_save.py"
_MESHES = "tests/backends/test_fsdp_meshes.py"
_RUNS = "tests/backends/test_runs.py"
_QUANTISED = "tests/plan/test_fit_quantised.py"


class Mutant(NamedTuple):
    """One rule.

    Args:
        name: what is taken out.
        file: the source file, below ckptconv/.
        rule: the text of the rule, which the file has once.
        instead: what takes its place.
        tests: the test file.
        match: pytest's -k, which selects the tests that have to fail.
    """

    name: str
    file: str
    rule: str
    instead: str
    tests: str
    match: str


MUTANTS = (
    Mutant(
        "the ledger's call", "plan/balance.py",
        "return ledger.check_balance(stored, used, [item.view for item in dropped if item.view is not None])", "return 0",
        _TRUST, "refused_by_the_ledger",
    ),
    Mutant(
        "the comparison of steps", "backends/deepspeed/model.py",
        "if (step := _step(_root(file))) != self.step:", "if (step := _step(_root(file))) is self:",
        _TRUST, "model_files_of_two_steps",
    ),
    Mutant(
        "the rows of a gated copy", "backends/megatron/cuts.py",
        "row = side * half * len(parts) + tp * half", "row = tp * 2 * half + side * half",
        _TRUST, "compared_with_the_rows_that_they_repeat",
    ),
    Mutant(
        "a resumed file's header", "copy/finished.py",
        "if file.read(len(out.header)) != out.header:", "if len(file.read(len(out.header))) != len(out.header):",
        _TRUST, "another_header",
    ),
    Mutant(
        "a resumed file's hashes", "copy/finished.py",
        "if known is not None and _hashes(plan, work, out, workers) == known.hashes:", "if known is not None:",
        _TRUST, "lost_its_bytes",
    ),
    Mutant(
        "NaN in a block", "copy/nonfinite.py",
        "strange = bool(_LARGEST(signed", "strange = False and bool(_LARGEST(signed",
        _TRUST, "share_of_nan",
    ),
    Mutant(
        "the receipt's hashes", "publish/receipt_check.py", "elif hashes[name] != wanted:", "elif False:",
        _TRUST, "source_whose_receipt",
    ),
    Mutant(
        "the last look at the sources", "tensors/file_state.py", "if now != was:", "if False:",
        _TRUST, "changes_under_the_last_byte",
    ),
    Mutant(
        "foreign names", "plan/fit.py", "found.foreign.append(name)", "pass",
        _WHOLE, "lacks_a_part_or_has_other_names",
    ),
    Mutant(
        "missing tensors of a layer", "plan/whole.py",
        "self._found.missing += [_filled(member.pattern, n) for n in sorted(wanted - instances)]", "pass",
        _WHOLE, "lacks_a_part_or_has_other_names",
    ),
    Mutant(
        "the number of layers", "plan/whole.py", "if end < wanted:", "if False:",
        _WHOLE, "lacks_a_part_or_has_other_names",
    ),
    Mutant(
        "sizes by the config",
        "plan/fit.py",
        "if stated is None or size == stated:",
        "if True:",
        "tests/plan/test_fit.py",
        "head_dim_is_taken",
    ),
    Mutant(
        "the step of sparse layers", "models/values.py",
        "return stated > 0 and number % stated == rest[1] % stated", "return stated > 0 and number % stated == rest[1]",
        "tests/plan/test_fit_forms.py", "of_any_form and (Nllb or Switch)",
    ),
    Mutant(
        "a layer's own width", "models/values.py",
        "return mine.get(path[-1], value) if isinstance(mine, dict) else value", "return value",
        "tests/plan/test_fit_forms.py", "of_any_form and Gemma4ForCausalLM",
    ),
    Mutant(
        "kinds of layers that are not known", "plan/runnable.py",
        'if isinstance(kind, str) and facts.refuses_layer_kind(part.get("model_type"), key, kind):', "if False:",
        "tests/plan/test_runnable.py", "does_not_have_is_refused",
    ),
    Mutant(
        "a tokenizer beyond the embedding", "commands/merge/token_ids.py",
        "if highest is not None and highest >= rows:", "if False:",
        "tests/commands/merge/test_token_ids.py", "more_tokens_than_rows",
    ),
    Mutant(
        "one number under two names", "plan/stated.py",
        "if len({repr(value) for value in stated.values()}) > 1:", "if False:",
        "tests/plan/test_fit.py", "two_names_with_two_values",
    ),
    Mutant(
        "what codes stand for", "plan/fit.py", "best.missing += plain.missing", "pass",
        _QUANTISED, "damage_does_not",
    ),
    Mutant(
        "attributes of a mesh", "backends/fsdp/attributes.py",
        "if part is None or (isinstance(part, dict) and part.keys() <= known):", "if True:",
        _MESHES, "attribute_that_is_not_known",
    ),
    Mutant(
        "_preserve_rank_order", "backends/fsdp/mesh.py", ' or mesh.get("_preserve_rank_order"):', ":",
        _MESHES, "files_of_torch_2_14_and_2_15",
    ),
    Mutant(
        "what ranks say of one tensor",
        "backends/fsdp/piece.py",
        "if not is_like or (piece.box is None) is not (first.box is None):",
        "if False:",
        "tests/backends/test_fsdp_ranks.py",
        "rank_file_from_another_save",
    ),
    Mutant(
        "small replicas", "read/replicas.py", "elif tensor.view.nbytes <= SMALL and", "elif False and",
        "tests/read/test_replicas.py", "small_replica_that_differs",
    ),
    Mutant(
        "ranks of two steps", "backends/deepspeed/one_save.py", "if steps[place] != first[place]:", "if False:",
        _ONE_SAVE, "ranks_of_different_steps",
    ),
    Mutant(
        "an optimizer ahead of its model", "backends/deepspeed/one_save.py", "if most > global_steps:", "if False:",
        _ONE_SAVE, "ahead_of_the_model",
    ),
    Mutant(
        "the bound of the vocabulary", "models/megatron/trainer.py", "if rows - vocabulary > most:", "if False:",
        _MEGATRON, "more_rows_than_the_trainer_pads",
    ),
    Mutant(
        "the rotary base", "models/megatron/trainer.py", '    _Setting(("rotary_base",), _rope_theta, _rotates),\n', "",
        _MEGATRON, "another_rotary_base",
    ),
    Mutant(
        "query groups", "models/megatron/trainer.py",
        '    _Setting(("num_query_groups",), _groups, _has_groups),\n', "",
        _MEGATRON, "other_sizes_in_config_json",
    ),
    Mutant(
        "the rank of roles", "backends/runs.py", "return next(ranks, Rank.OTHER)", "return Rank.OTHER",
        _RUNS, "before_critics_and_references",
    ),
    Mutant(
        "PEFT's version for square experts", "models/lora/scaling.py",
        "if (int(stated[1]), int(stated[2])) < (0, 19):", "if False:",
        "tests/lora/test_peft_folders.py", "told_by_the_version_of_peft",
    ),
    Mutant(
        "updates that are zero", "commands/merge/zero_updates.py", "factors = take_stock(checkpoint).parts.factors",
        "factors: tuple[lora.Factors, ...] = ()",
        "tests/lora/test_peft_folders.py", "update_that_is_zero",
    ),
    Mutant(
        "a step younger than its mark", "commands/merge/steps.py",
        "elif changed > stamp(mark).changed / 10**9 and settled < SAVED_AGAIN:", "elif False:",
        "tests/commands/merge/test_merge_steps.py", "younger_than_the_mark_waits",
    ),
    Mutant(
        "a file that is younger than .metadata", "backends/saved_at.py",
        "if late and 2 * len(late) <= len(times):", "if False:",
        "tests/backends/test_saved_at.py", "younger_than_the_metadata",
    ),
    Mutant(
        "the checksum of a mesh's ranks", "formats/torch_zip.py",
        "or (crc and zlib.crc32(data) != crc):", "or crc is data:",
        _MESHES, "a_damaged_mesh_is_refused",
    ),
    Mutant(
        "one mesh on all ranks", "backends/fsdp/rank_files.py",
        "if (known.mesh, known.ranks) != (position.mesh, position.ranks):", "if known is None:",
        _MESHES, "disagree_on_the_mesh_of_a_tensor",
    ),
    Mutant(
        "the length of a zip entry's header", "formats/zip_places.py",
        "if found != starts[number]:", "if found is None:",
        "tests/formats/test_zip_places.py", "refused_at_the_read",
    ),
    Mutant(
        "one place of two layers", "backends/dcp/places.py",
        "if starred(other[0]) == starred(part[0]):", "if other is part:",
        "tests/backends/test_dcp_archives.py", "contradicts_itself",
    ),
)  # fmt: skip
