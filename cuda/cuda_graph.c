/*
 * cuda_graph - ops that are asked for again and again, as one CUDA graph for each key.
 *
 * A graph is made when its key comes for the second time: the first time's launches load their
 * kernels and take the memory that they need once, neither of which a capture may do. Engine thread
 * only.
 */
#include "base/check.h"
#include "cuda/cuda_backend.h"

#include <stdlib.h>
#include <string.h>

/* What one key comes to. */
struct cuda_graph {
    bool seen;
    cudaGraphExec_t exec;          /* NULL: not made yet */
    struct op_cost cost[OP_COUNT]; /* of one replay */
};

int cuda_graphs_open(struct cuda_backend *cb, struct err *err)
{
    cb->graphs = calloc((size_t)cb->params.max_rows + 1, sizeof(*cb->graphs));
    if (!cb->graphs)
        return err_set(err, ERR_NO_ROOM, "cuda graphs: no memory for %d keys", cb->params.max_rows);
    return 0;
}

void cuda_graphs_close(struct cuda_backend *cb)
{
    for (int i = 0; cb->graphs && i <= cb->params.max_rows; i++) {
        if (cb->graphs[i].exec)
            cudaGraphExecDestroy(cb->graphs[i].exec);
    }
    free(cb->graphs);
}

/* cost[i] += factor * add[i] */
static void add_cost(struct op_cost *cost, const struct op_cost *add, int factor)
{
    for (int i = 0; i < OP_COUNT; i++) {
        cost[i].n_calls += factor * add[i].n_calls;
        cost[i].bytes += factor * add[i].bytes;
        cost[i].flops += factor * add[i].flops;
    }
}

int cuda_graph_begin(struct backend *be, int key, struct err *err)
{
    struct cuda_backend *cb = (struct cuda_backend *)be;
    struct cuda_graph *g;

    CHECK(key > 0);
    CHECK(key <= cb->params.max_rows);
    CHECK(!cb->graph);
    g = &cb->graphs[key];
    if (g->exec) {
        CUDA_TRY(err, cudaGraphLaunch(g->exec, cb->stream));
        add_cost(be->cost, g->cost, 1);
        return 1;
    }
    if (g->seen && !cb->sync_launches) { /* a capture cannot be waited for */
        CUDA_TRY(err, cudaStreamBeginCapture(cb->stream, cudaStreamCaptureModeThreadLocal));
        memset(g->cost, 0, sizeof(g->cost));
        add_cost(g->cost, be->cost, -1);
        cb->graph = g;
    }
    g->seen = true;
    return 0;
}

int cuda_graph_end(struct backend *be, bool keep, struct err *err)
{
    struct cuda_backend *cb = (struct cuda_backend *)be;
    struct cuda_graph *g = cb->graph;
    cudaGraph_t graph = NULL;
    cudaError_t rc;

    if (!g)
        return 0;
    cb->graph = NULL;
    add_cost(g->cost, be->cost, 1);
    rc = cudaStreamEndCapture(cb->stream, &graph);
    if (rc == cudaSuccess && keep)
        rc = cudaGraphInstantiate(&g->exec, graph, 0);
    if (graph)
        cudaGraphDestroy(graph);
    if (!keep) {
        cudaGetLastError(); /* of the capture that an op spoilt: the op has reported it */
        return 0;
    }
    if (rc != cudaSuccess)
        return cuda_fail(err, rc, "capturing a step");
    CUDA_TRY(err, cudaGraphLaunch(g->exec, cb->stream));
    return 0;
}
