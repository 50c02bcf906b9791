from attnprobe.reports.sites import at_effective, at_sites, at_softmax, changes_its_maps, untrained
from tests.reports.formulas import examined


def test_a_plain_vit_has_one_matrix():
    e = examined(layers=4)
    m = e.measurements["similar_blocks"]
    assert at_effective(e, "similar_blocks") is at_softmax(e, "similar_blocks") is m
    assert at_sites(e, "similar_blocks") == [m]
    assert not changes_its_maps(e)


def test_a_variant_that_changes_its_maps_has_two_effective_first():
    e = examined(layers=4, effective_similar=())
    assert [m.site for m in at_sites(e, "similar_blocks")] == ["effective", "weights"]
    assert at_sites(e, "similar_blocks")[1] is e.measurements["similar_blocks@weights"]
    assert at_effective(e, "row_entropy") is None
    assert at_sites(e, "row_entropy") == [e.measurements["row_entropy"]]
    assert changes_its_maps(e)


def test_what_was_not_measured_is_not_there():
    e = examined(layers=4)
    assert at_sites(e, "no_such_metric") == []


def test_the_untrained_network_is_a_run_of_its_own():
    e = examined(layers=4, similar=(4,), untrained=(2, 3))
    fresh = untrained(e)
    assert fresh.name == "vit_16, untrained"
    assert fresh.measurements["similar_blocks"].summary["similar"] == [2, 3]
    assert not fresh.info
    assert untrained(examined(layers=4, untrained=None)) is None
