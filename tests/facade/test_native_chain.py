"""The C side of a chain, without a context."""

from __future__ import annotations

import pytest

from llamacffi import BusyError, Candidates, ClosedError, Context, Dist, SamplerChain, TopK
from llamacffi.sampling.chain import native


class Graph:
    """Something that has a chain in a graph."""

    def __init__(self):
        self.ended, self.released, self.error = False, [], None

    def gone(self):
        return self.ended

    def release(self, chain):
        self.released.append(chain)
        if self.error:
            raise self.error


@pytest.fixture
def chain():
    with SamplerChain(TopK(4), Dist(1)) as chain:
        yield chain


@pytest.fixture
def graph(chain):
    """What the chain is attached to."""
    graph, one = Graph(), native(chain)
    with one.lock:
        one.ready()
        one.enter_graph(1)  # as if only the first sampler ran there
        one.attachment = graph
    return graph


def test_a_chain_stays_in_a_graph_that_exists(chain, graph):
    assert chain.names == ["top-k", "unsorted", "dist"]
    assert native(chain).attachment is graph
    assert native(chain).struct.in_graph


def test_a_chain_takes_itself_back_from_a_graph_that_is_gone(chain, graph):
    graph.ended = True
    assert chain.names == ["top-k", "dist"]
    assert native(chain).attachment is None
    assert not native(chain).struct.in_graph


@pytest.mark.parametrize("error", [None, BusyError("computing"), ClosedError("closed")])
def test_closing_a_chain_takes_it_out_of_its_graph(chain, graph, error):
    graph.error = error
    chain.close()
    assert graph.released == [native(chain)]
    assert chain.closed


def test_closing_a_chain_does_not_touch_a_graph_that_is_gone(chain, graph):
    graph.ended = True
    chain.close()
    assert graph.released == []


def test_errors_call_it_a_sampler_chain(chain):
    chain.close()
    with pytest.raises(ClosedError, match="the SamplerChain is closed"):
        native(chain).ptr  # noqa: B018
    assert repr(native(chain)) == repr(chain)


def test_the_class_of_contexts_is_not_a_context(chain):
    for read in (chain.sample, Candidates.from_context):
        with pytest.raises(TypeError, match="context must be a Context, not <class"):
            read(Context)
