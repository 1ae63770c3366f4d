"""Each fault that the library promises something about, and the tests that hold the promise.

The numbers are the rows of the list of faults that the project keeps beside its design. Row 4 (a
JPEG whose stream is damaged but decodes) can't be noticed by anyone, and is documented. Row 63
(class names that mean nothing) is partly kept: WordNet numbers are put into words.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
IMAGES, SAMPLES, INPUT = (
    "faults/test_bad_images",
    "faults/test_bad_samples",
    "faults/test_bad_input",
)
DAMAGED, KILLED = "faults/test_damaged_files", "faults/test_killed_writes"
IDENTITY, NAMES = "faults/test_stored_identity", "faults/test_hostile_names"
NOTHING, COMMANDS = "faults/test_nothing_runs", "faults/test_command_line"
PIXELS, SCANNER = "data/test_pixels", "scan/test_scanner"
RECORDED = (IMAGES, "test_record_keeps_bad_samples_out")
DAMAGE = (DAMAGED, "test_a_damaged_file_is_done_again")
MUTANTS = ("faults/test_mutated_images", "test_a_few_hundred_mutants")
ROWS = {
    1: RECORDED, 2: RECORDED, 3: RECORDED,
    4: ("data/test_failures", "test_failures_of_real_files"),
    5: MUTANTS,
    6: (SCANNER, "test_a_sample_that_kills_its_worker_is_recorded"),
    7: RECORDED,
    8: (SAMPLES, "test_no_transform_is_shown_a_bomb"),
    9: (PIXELS, "test_every_mode_becomes_rgb"),
    10: (PIXELS, "test_every_mode_becomes_rgb"),
    11: (IMAGES, "test_deep_images_are_scaled_not_clipped"),
    12: (PIXELS, "test_an_animation_gives_its_first_frame"),
    13: (IDENTITY, "test_another_zero_shot_function"),
    14: RECORDED,
    15: (NAMES, "test_bad_samples"),
    16: (INPUT, "test_no_map_style_dataset_of_images"),
    17: (IMAGES, "test_raise_names_an_own_dataset_s_bad_sample_at_once"),
    18: (INPUT, "test_random_augmentation"),
    19: (INPUT, "test_a_dataset_that_changed_since"),
    20: (INPUT, "test_bad_labels"),
    21: (NAMES, "test_classes_without_clean_samples_are_named_escaped"),
    22: (INPUT, "test_one_class"),
    23: (INPUT, "test_bad_class_names"),
    24: (SCANNER, "test_what_stays_infinite_is_a_bad_sample"),
    25: ("train/test_loss", "test_batches_of_one_kind_have_a_finite_loss_with_a_graph"),
    26: ("test_processes", "test_any_number_of_processes_gives_the_same_bits"),
    27: ("train/test_loss", "test_any_type_of_outputs_is_computed_in_fp32"),
    28: ("train/test_loss", "test_another_number_of_outputs_is_refused_with_both_shapes"),
    29: ("train/test_loss", "test_strict_refuses_untagged_training_batches"),
    30: ("train/test_loss", "test_soft_targets_in_training_are_refused"),
    31: (KILLED, "test_a_process_that_is_killed_leaves_the_same"),
    32: (KILLED, "test_a_kill_at_any_call_ends_in_the_same_bytes"),
    33: ("test_files", "test_a_full_disk_leaves_nothing_and_says_need_and_have"),
    34: DAMAGE, 35: DAMAGE,
    36: ("test_processes", "test_any_number_of_processes_gives_the_same_bits"),
    37: ("test_processes", "test_any_number_of_processes_gives_the_same_bits"),
    38: (IDENTITY, "test_another_zero_shot_function"),
    39: ("test_processes", "test_when_a_process_dies_the_others_finish_and_name_its_units"),
    40: (SCANNER, "test_when_memory_runs_out_batches_are_halved"),
    41: (COMMANDS, "test_ctrl_c_says_how_to_go_on"),
    42: ("clip/test_clip_weights", "test_hub_offline_fails_at_once_with_instructions"),
    43: ("scan/test_store", "test_a_newer_format_is_left_alone"),
    44: ("report/test_exports", "test_table_is_safe_and_complete"),
    45: (NOTHING, "test_a_hostile_result_of_backdoorbench_is_refused"),
    46: (DAMAGED, "test_a_finished_cache_is_only_read"),
    47: (NOTHING, "test_a_text_tower_with_code_of_its_own_is_refused"),
    48: (DAMAGED, "test_files_that_changed_places_are_done_again"),
    49: (KILLED, "test_a_saved_guard_is_the_old_or_the_new_one"),
    50: (IDENTITY, "test_another_activation_under_the_same_weights"),
    51: (IDENTITY, "test_replaced_files"),
    52: (IDENTITY, "test_a_dataset_that_was_reordered_is_refused"),
    53: ("faults/test_diverging", "test_fit_ends_with_the_step_and_the_last_good_weights"),
    54: (SAMPLES, "test_one_impossible_pixel_is_one_bad_sample"),
    55: (SAMPLES, "test_samples_that_crash_or_hang_cost_themselves_alone"),
    56: (SAMPLES, "test_a_crash_in_the_other_views_is_survived"),
    57: ("faults/test_replaced_sampler", "test_another_sampler_is_said_once_by_name"),
    58: ("faults/test_criteria", "test_on_clean_samples_the_loss_is_the_criterion"),
    59: ("faults/test_mixup", "test_mixup_by_two_calls_is_refused"),
    60: ("train/test_stateful", "test_torchdatas_loader_goes_on_where_it_was"),
    61: ("train/test_checkpoint", "test_a_killed_fit_goes_on_to_the_same_weights"),
    62: ("faults/test_long_tail", "test_every_class_counts_as_much_as_without_a_bound"),
    63: ("adapters/test_timm", "test_wordnet_ids_become_words_that_tell_classes_apart"),
}  # fmt: skip


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((TESTS / f"{file}.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_no_row_is_left_out() -> None:
    assert list(ROWS) == list(range(1, 64))


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_its_test(row: int) -> None:
    file, name = ROWS[row]
    assert name in names_in(file)
