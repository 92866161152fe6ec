"""Tables, tests and fronts against numbers that were worked out by hand, by brute force, or by scipy."""

import csv
import io
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from helpers_bench import TINY, make_record, suite_of, task_of

from vitgraft.bench import layout, paired, reading, record
from vitgraft.bench.paired import bootstrap, signed_rank
from vitgraft.bench.reading import compare, pareto, table
from vitgraft.common.errors import RequestError

VALUES = {  # label: {task: values of seeds 0, 1, ...}
    "linear": {"pets": [0.50, 0.54], "svhn": [0.40, 0.40], "clevr": [0.30, 0.32]},
    "lora": {"pets": [0.80, 0.84], "svhn": [0.90, 0.92], "clevr": [0.60, 0.70]},
    "hst": {"pets": [0.81, 0.83], "svhn": [0.92, 0.92], "clevr": [0.80, 0.70]},
}
SIZES = {"linear": 0, "lora": 300_000, "hst": 300_000}


def records_of(values=VALUES, **changes):
    return [
        make_record(
            value,
            {"parameters": SIZES.get(label, 1), "seconds": 10.0 * (1 + list(values).index(label))},
            label=label,
            method=label,
            task=task,
            seed=seed,
            **changes,
        )
        for label, tasks in values.items()
        for task, of_seeds in tasks.items()
        for seed, value in enumerate(of_seeds)
    ]


@pytest.fixture
def made():
    return table(records_of(), TINY, labels=list(VALUES))


# The table.


def test_means_and_spreads(made):
    lora = made.row("lora")
    assert lora.tasks["pets"].mean == pytest.approx(0.82)
    assert lora.tasks["pets"].deviation == pytest.approx(0.02 * math.sqrt(2))
    # seed 0: 0.8 0.9 | 0.6, seed 1: 0.84 0.92 | 0.7
    assert lora.mean.values == pytest.approx({0: 2.3 / 3, 1: 2.46 / 3})
    assert lora.mean_of_groups.values == pytest.approx({0: (0.85 + 0.6) / 2, 1: (0.88 + 0.7) / 2})
    assert lora.mean_of_groups.mean == pytest.approx(0.7575)
    assert lora.mean_of_groups.deviation == pytest.approx(0.065 / math.sqrt(2))
    assert lora.parameters == 300_000
    assert lora.parameters_with_head == 300_030
    assert made.notes == ()


def test_one_seed_has_no_spread():
    one = table([r for r in records_of() if r.job.seed == 0], TINY).row("lora")
    assert one.mean.deviation is None
    assert one.tasks["pets"].deviation is None


def test_order_of_records_does_not_matter(made):
    shuffled = records_of()[::-1]
    assert layout.text(table(shuffled, TINY, labels=list(VALUES))) == layout.text(made)


def test_no_average_over_a_part():
    values = {**VALUES, "lora": {"pets": [0.8], "svhn": [0.9]}}
    made = table(records_of(values), TINY)
    assert made.row("lora").missing == ["clevr"]
    assert made.row("lora").mean is made.row("lora").mean_of_groups is None
    assert "lora lacks clevr, so it has no average" in made.notes
    assert [row.label for row in pareto(made)] == ["linear", "hst"]
    made = table(records_of({**values, "hst": {"pets": [0.8], "svhn": [0.9]}}), TINY)
    assert made.notes == ("hst, lora lack clevr, so they have no average",)


def test_a_seed_without_its_hardest_task_is_in_no_average():
    values = {"lora": {"pets": [0.8, 0.8], "svhn": [0.9, 0.9], "clevr": [0.1]}}
    made = table(records_of(values), TINY)
    assert made.row("lora").mean.values == pytest.approx({0: 0.6})
    assert made.notes == ("lora has 1 to 2 seeds; its averages are over whole seeds only",)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"protocol": "hst"}, "there are protocols strict, hst: choose one"),
        ({"digest": "0" * 64}, "there are data sets of pets dddddddddddd, 000000000000"),
        ({"suite": "other"}, "is a record of the suite other, but tiny was asked for"),
        ({"seed": 0, "settings": {"lr": 1.0}}, "two runs of 'lora, pets, seed 0' with other settings"),
    ],
)
def test_like_with_like(change, sentence):
    extra = make_record(0.9, **{"label": "lora", "method": "lora", "seed": 9, **change})
    with pytest.raises(RequestError, match=sentence):
        table([*records_of(), extra], TINY)


def test_other_weights_and_other_metrics_do_not_mix():
    extra = make_record(0.9, seed=9)
    weights = replace(extra, job=replace(extra.job, fingerprint="0" * 64))
    with pytest.raises(RequestError, match="there are backbones ffffffffffff, 000000000000"):
        table([*records_of(), weights], TINY)
    with pytest.raises(RequestError, match="metrics of pets top-1 accuracy on test, top-1 accuracy on val"):
        table([*records_of(), replace(extra, split="val")], TINY)


def test_one_protocol_of_several(made):
    both = [*records_of(), *records_of({"lora": {"pets": [0.1]}}, protocol="hst", flags=["best epoch on test"])]
    assert table(both, TINY, protocol="strict", labels=list(VALUES)) == made
    assert "flatters: best epoch on test" in table(both, TINY, protocol="hst").notes
    with pytest.raises(RequestError, match="There is no record of the protocol sct"):
        table(both, TINY, protocol="sct")


def test_runs_of_one_task_that_were_not_given_the_same():
    records = records_of()
    records[0] = replace(records[0], resolved={"protocol": {"lr": 0.1, "epochs": 60}})  # another lr is no fault
    task = records[0].job.task
    assert table(records, TINY).notes == (f"the runs on {task} were not given the same epochs: 30, 60",)


def test_notes_of_what_misleads():
    records = records_of()
    records[0] = replace(records[0], machine={"gpu": "another"}, commit="another", dirty=True)
    notes = table(records, TINY).notes
    assert any("different machines" in note for note in notes)
    assert any("different versions or commits" in note for note in notes)
    assert any("code that differs from its commit" in note for note in notes)


def test_no_such_row(made):
    with pytest.raises(RequestError, match=r"There is no row 'loar'.*Did you mean 'lora'"):
        made.row("loar")


def test_reads_a_folder(tmp_path):
    with pytest.raises(RequestError, match="holds no record"):
        reading.read(tmp_path, TINY)
    (tmp_path / "records").mkdir()
    for found in records_of():
        record.write(found, tmp_path / "records" / f"{found.job.key}.json")
    path = tmp_path / "records" / f"{found.job.key}.json"
    left = path.with_name(f".{path.name}.4711.tmp")  # another process is writing it just now
    left.write_bytes(path.read_bytes()[:99])
    found = reading.read(tmp_path, TINY)
    assert sorted(r.job.title for r in found) == sorted(r.job.title for r in records_of())
    with pytest.raises(RequestError, match="of the suite tiny, but other was asked for"):
        reading.read(tmp_path, replace(TINY, name="other"))
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(RequestError, match="is no whole record"):  # never a table that silently lacks a run
        reading.read(tmp_path, TINY)


# Differences.


def test_paired_differences(made):
    found = compare(made, "hst", "lora")
    assert found.differences == pytest.approx({"pets": 0.0, "svhn": 0.01, "clevr": 0.1})
    assert found.mean == pytest.approx(0.11 / 3)
    assert found.interval[0] <= found.mean <= found.interval[1]
    assert (found.w, found.p) == (0.0, 0.5)  # two differences above zero: 2 of 4 assignments of signs are as extreme
    back = compare(made, "lora", "hst")
    assert back.mean == -found.mean
    assert back.p == found.p
    assert found.line().startswith("hst - lora: +3.67 points (+0.00 to +10.00) over 3 tasks, ahead on 2; Wilcoxon p")


def test_pairs_share_seeds_and_tasks():
    """A seed or a task that only one of the two has does not enter the difference."""
    values = {"a": {"pets": [0.5, 0.9], "svhn": [0.5]}, "b": {"pets": [0.4], "clevr": [0.1]}}
    made = table(records_of(values), TINY)
    assert compare(made, "a", "b").differences == pytest.approx({"pets": 0.1})
    with pytest.raises(RequestError, match="share no task and seed"):
        compare(table(records_of({"a": {"pets": [0.5]}, "b": {"svhn": [0.4]}}), TINY), "a", "b")


def test_same_against_same(made):
    found = compare(made, "lora", "lora")
    assert (found.mean, found.interval, found.p) == (0.0, (0.0, 0.0), 1.0)


# Wilcoxon's test.


def by_enumeration(differences):
    """p by trying all signs."""
    kept = [d for d in differences if d]
    sizes = np.abs(kept)
    ranks = [(sizes < s).sum() + ((sizes == s).sum() + 1) / 2 for s in sizes]
    least = min(sum(r for r, d in zip(ranks, kept, strict=True) if (d > 0) == side) for side in (True, False))
    extreme = 0
    for signs in itertools.product((0, 1), repeat=len(kept)):
        positive = np.dot(signs, ranks)
        extreme += min(positive, sum(ranks) - positive) <= least
    return least, extreme / 2 ** len(kept)


@pytest.mark.parametrize("n", range(1, 12))
@pytest.mark.parametrize("ties", [False, True])
def test_exact_test_by_enumeration(n, ties):
    rng = np.random.default_rng(n)
    for _ in range(5):
        differences = rng.integers(-4, 5, n).tolist() if ties else rng.normal(0.3, 1, n).tolist()
        if any(differences):
            w, p = signed_rank(differences)
            assert (w, p) == pytest.approx(by_enumeration(differences))


@pytest.mark.parametrize(
    ("n", "w", "level"),
    [(6, 0, 0.05), (8, 3, 0.05), (10, 8, 0.05), (19, 46, 0.05), (20, 52, 0.05), (25, 89, 0.05), (10, 3, 0.01)],
)
def test_critical_values_of_the_printed_tables(n, w, level):
    """The largest W that is significant, two-sided, as tables of the test print it."""

    def p_of(least):
        signs, left = [1] * n, least
        for rank in range(n, 0, -1):  # ranks whose sum is `least` get the other sign
            if rank <= left:
                signs[rank - 1], left = -1, left - rank
        got, p = signed_rank([sign * (i + 1) for i, sign in enumerate(signs)])
        assert got == least
        return p

    assert p_of(w) <= level < p_of(w + 1)


@pytest.mark.parametrize("n", [5, 12, 19, 25])
def test_exact_test_as_scipy(n):
    stats = pytest.importorskip("scipy.stats")
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    told = stats.wilcoxon(differences, method="exact")
    assert signed_rank(differences.tolist()) == pytest.approx((told.statistic, told.pvalue))


@pytest.mark.parametrize("n", [26, 40, 200])
@pytest.mark.parametrize("ties", [False, True])
def test_approximation_as_scipy(n, ties):
    stats = pytest.importorskip("scipy.stats")
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    if ties:
        differences = differences.round(1)
        differences[differences == 0] = 0.1  # zeros are left out, and 25 of 26 would be counted exactly
    told = stats.wilcoxon(differences, method="approx", correction=True)
    assert signed_rank(differences.tolist()) == pytest.approx((told.statistic, told.pvalue))


def test_approximation_meets_the_exact_test():
    """At the border the two ways agree to a hundredth."""
    rng = np.random.default_rng(0)
    for shift in (0.1, 0.3, 0.5):
        differences = rng.normal(shift, 1, 25).tolist()
        doubled = paired._doubled_ranks([abs(d) for d in differences])
        w, p = signed_rank(differences)
        assert paired._normal(doubled, int(2 * w)) == pytest.approx(p, abs=0.01)


def test_zeros_and_rounding():
    assert signed_rank([]) == (0.0, 1.0)
    assert signed_rank([0.0, 0.0]) == (0.0, 1.0)
    assert signed_rank([0.0, 1.0, 2.0]) == signed_rank([1.0, 2.0])
    assert signed_rank([0.3 - 0.1, -0.2, 0.4]) == signed_rank([2, -2, 4])  # 0.3 - 0.1 is not 0.2 to the last bit


# Bootstrap.


def test_bootstrap_is_reproducible_and_right():
    differences = np.random.default_rng(0).normal(2.0, 1.0, 400)
    low, high = bootstrap(differences)
    assert (low, high) == bootstrap(differences)
    assert (low, high) != bootstrap(differences, seed=1)
    error = differences.std() / math.sqrt(400)  # of the mean of many: its distribution is normal
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.1 * error)
    assert bootstrap([0.5]) == (0.5, 0.5)


# The front.


def test_pareto(made):
    assert [row.label for row in pareto(made)] == ["linear", "hst"]  # lora has hst's parameters and is worse
    assert [row.label for row in pareto(made, "seconds")] == ["linear", "lora", "hst"]
    assert [row.label for row in pareto(made, "memory", "mean of groups")] == ["hst"]  # all need the same
    twins = table(records_of({"a": VALUES["hst"], "b": VALUES["hst"]}), TINY)
    assert [row.label for row in pareto(twins)] == ["a", "b"]  # neither beats the other


def test_pareto_of_what(made):
    with pytest.raises(RequestError, match=r"There is no 'second'.*Did you mean 'seconds'"):
        pareto(made, "second")
    with pytest.raises(RequestError, match="There is no 'mean of 3'"):
        pareto(made, average="mean of 3")


# As text, CSV and LaTeX.


def test_text(made):
    assert layout.text(made).splitlines() == [
        "a suite for tests; protocol strict; vit.safetensors",
        "",
        "method  params (M)  with head (M)      pets      svhn     clevr   mean of 3  mean of groups",
        "linear       0.000          0.000  52.0±2.8  40.0±0.0  31.0±1.4  41.00±1.41      38.50±1.41",
        "lora         0.300          0.300  82.0±2.8  91.0±1.4  65.0±7.1  79.33±3.77      75.75±4.60",
        "hst          0.300          0.300  82.0±1.4  92.0±0.0  75.0±7.1  83.00±1.89      81.00±3.18",
    ]


def test_text_says_what_is_missing():
    made = table(records_of({"lora": {"pets": [0.8]}}), TINY)
    assert layout.text(made).splitlines()[3].split() == ["lora", "0.300", "0.300", "80.0", "-", "-", "-", "-"]
    assert layout.text(made).splitlines()[-1] == "* lora lacks svhn, clevr, so it has no average"


def test_csv(made):
    rows = list(csv.DictReader(io.StringIO(layout.comma_separated(made))))
    assert len(rows) == 3 * (3 + 2)
    (pets,) = (row for row in rows if (row["method"], row["task"]) == ("lora", "pets"))
    assert float(pets["mean"]) == pytest.approx(0.82)
    assert (pets["group"], pets["seeds"], pets["values"]) == ("natural", "0 1", "0.8 0.84")
    assert float(pets["parameters_with_head"]) == 300_030
    (groups,) = (row for row in rows if (row["method"], row["task"]) == ("lora", "mean of groups"))
    assert float(groups["mean"]) == pytest.approx(0.7575)
    empty = list(csv.DictReader(io.StringIO(layout.comma_separated(table(records_of({"a": {"pets": [0.5]}}), TINY)))))
    assert [row["mean"] for row in empty] == ["0.5", "", "", "", ""]


def test_of_one_group_there_is_one_average():
    suite = suite_of(task_of("a"), task_of("b"))
    made = table(records_of({"x": {"a": [0.5, 0.7], "b": [0.1, 0.1]}}), suite)
    assert layout.text(made).splitlines()[2].endswith("a         b   mean of 2")
    lines = list(csv.DictReader(io.StringIO(layout.comma_separated(made))))
    assert [line["task"] for line in lines] == ["a", "b", "mean of 2"]


def test_what_several_rows_lack_is_said_once(tmp_path):
    values = {"linear": VALUES["linear"], "lora": {"pets": [0.8]}, "hst": {"pets": [0.9]}}
    made = table(records_of(values), TINY)
    assert reading.gap_lines(reading.gaps(made, tmp_path)) == [
        "not run: hst; lora, pets, seed 1",
        "not run: hst; lora, svhn, clevr, seeds 0, 1",
    ]
    assert made.notes == ("hst, lora lack svhn, clevr, so they have no average",)
    uneven = {"svhn": [0.9, 0.9], "clevr": [0.9, 0.9], "pets": [0.8]}
    made = table(records_of({"linear": VALUES["linear"], "lora": uneven, "hst": uneven}), TINY)
    assert made.notes == ("hst, lora have 1 to 2 seeds; their averages are over whole seeds only",)


def test_latex():
    suite = suite_of(task_of("a_b", group="one"), task_of("100%", group="other"))
    values = {r"x & y": {"a_b": [0.5, 0.6], "100%": [0.1, 0.1]}, r"\z": {"a_b": [0.5]}}
    said = layout.latex(table(records_of(values), suite)).splitlines()
    assert said[0] == "% protocol strict, vit.safetensors"
    assert r"\begin{tabular}{lrrrrrr}" in said
    assert r"method & params (M) & with head (M) & a\_b & 100\% & mean of 2 & mean of groups \\" in said
    assert r"\textbackslash{}z & 0.000 & 0.000 & 50.0 & - & - & - \\" in said
    assert any(line.startswith(r"x \& y & 0.000 & 0.000 & 55.0 $\pm$ 7.1 & 10.0 $\pm$ 0.0 &") for line in said)
    assert all(line.count("&") - line.count(r"\&") in (0, 6) for line in said if not line.startswith("%"))
