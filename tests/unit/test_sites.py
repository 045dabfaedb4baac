"""Sites: a repeated step finds the site whose last binding predicts it, layer by layer."""

from __future__ import annotations

from remora.session.sites import MAX_SITES_PER_TEMPLATE, Sites
from remora.wire.binding import encode_run


def run(sites, template, segment, names):
    site, new = sites.choose(template, segment, names)
    return (
        site.index,
        new,
        encode_run(
            site.memory, segment, site.index, names, [], (), (), None, None, frozenset(range(len(names)))
        ),
    )


def test_layers_that_share_a_template_get_a_site_each_and_then_send_nothing():
    sites = Sites()
    layers = [[(1000 + 10 * layer + weight, 0, 0) for weight in range(8)] for layer in range(3)]
    weights = frozenset(range(8))
    for step in range(4):
        for layer, names in enumerate(layers):
            segment = 2000 + 3 * step + layer
            site, new = sites.choose(0, segment, names)
            said = encode_run(site.memory, segment, site.index, names, [], (), (), None, None, weights)
            assert (site.index, new) == (layer, step == 0)
            assert (said.slots is None) == (step > 0)


def test_templates_never_share_a_site():
    sites = Sites()
    names = [(1, 0, 0)]
    assert run(sites, 0, 10, names)[:2] == (0, True)
    assert run(sites, 1, 11, names)[:2] == (1, True)
    assert run(sites, 0, 12, names)[1] is False


def test_the_number_of_sites_of_a_template_is_bounded():
    sites = Sites()
    for i in range(3 * MAX_SITES_PER_TEMPLATE):
        run(sites, 0, 10_000 + i, [(100 * i + k, 0, 0) for k in range(8)])
    assert sites.count <= MAX_SITES_PER_TEMPLATE + 1


def test_what_a_run_made_once_and_later_runs_read_is_fixed_from_the_second_site_on():
    """Optimizer state: made by the first step, written in place by all; activations move with the segment."""
    sites = Sites()
    state = [(5, row, 0) for row in range(8)]
    sent = []
    for segment in range(10, 20):
        names = [*state, (segment - 1, 3, 0), (segment - 1, 4, 0)]
        site, _ = sites.choose(0, segment, names)
        said = encode_run(site.memory, segment, site.index, names, [], (), (), None, None, site.fixed)
        sent.append(said.slots is not None)
    assert sent == [True, True] + [False] * 8
    assert sites.count == 2


def test_a_loop_that_begins_anew_with_other_values_says_what_it_said_before():
    """A weight, and a state that the weight makes of itself: the same sites, told in the same way, and then nothing."""
    sites, segment, rounds = Sites(), 10, []
    for _ in range(3):
        weight, state, said = (segment, 0, 0), (segment + 1, 0, 0), []
        segment += 2
        for _ in range(6):
            names = [weight, state]
            site, new = sites.choose(0, segment, names)
            uploaded = frozenset(slot for slot, name in enumerate(names) if name[1] == 0)
            stay = uploaded | site.fixed if new else frozenset()
            run = encode_run(
                site.memory, segment, site.index, names, [], (), (), None, None, stay, site.taken
            )
            if run.slots is not None:
                sites.told(site, run.slots)
            turned = run.slots and [n - segment if at % 5 == 2 else n for at, n in enumerate(run.slots)]
            said.append((site.index, turned))
            before, state = state, (segment, 3, 0)
            segment += 1
            sites.freed([before[0]])
        rounds.append(said)
        sites.freed([weight[0], state[0]])
    assert rounds[1] == rounds[2]
    assert [index for index, _ in rounds[0]] == [index for index, _ in rounds[1]]
    assert all(told is None for _, told in rounds[1][3:])
    assert sites.count == 2
