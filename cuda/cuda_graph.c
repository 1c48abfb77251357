/*
 * cuda_graph - ops that are asked for again and again, as one CUDA graph for each key.
 *
 * A graph is made when its key comes for the second time: the first time's launches load their
 * kernels and take the memory that they need once, neither of which a capture may do. Where none
 * can be made the ops are launched one by one, and the log says so once. Engine thread only.
 */
#include "base/check.h"
#include "base/log.h"
#include "cuda/cuda_backend.h"

#include <stdlib.h>
#include <string.h>

/* What one key comes to. */
struct cuda_graph {
    bool seen, failed;
    cudaGraphExec_t exec;          /* NULL: not made yet */
    struct op_cost cost[OP_COUNT]; /* of one replay */
};

int cuda_graphs_open(struct cuda_backend *cb, struct err *err)
{
    cb->n_graphs = 1 + (cb->params.max_graphs > 0 ? cb->params.max_graphs : cb->params.max_rows);
    cb->graphs = calloc((size_t)cb->n_graphs, sizeof(*cb->graphs));
    if (!cb->graphs)
        return err_set(err, ERR_NO_ROOM, "cuda graphs: no memory for %d keys", cb->n_graphs);
    return 0;
}

void cuda_graphs_close(struct cuda_backend *cb)
{
    for (int i = 0; cb->graphs && i < cb->n_graphs; i++) {
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

/* What a capture does not take is launched without, from now on. */
static void give_up(struct cuda_graph *g, int key, cudaError_t rc)
{
    g->failed = true;
    log_warn("CUDA: no graph for key %d (%s); its kernels are launched one by one", key,
             rc == cudaSuccess ? "an op failed in the capture" : cudaGetErrorName(rc));
}

int cuda_graph_begin(struct backend *be, int key, struct err *err)
{
    struct cuda_backend *cb = (struct cuda_backend *)be;
    struct cuda_graph *g;

    CHECK(key > 0);
    CHECK(key < cb->n_graphs);
    CHECK(!cb->graph);
    g = &cb->graphs[key];
    if (cb->is_timed) { /* the ops, one by one */
        g->seen = true;
        return 0;
    }
    if (g->exec) {
        CUDA_TRY(err, cudaGraphLaunch(g->exec, cb->stream));
        add_cost(be->cost, g->cost, 1);
        return 1;
    }
    if (g->seen && !g->failed && !cb->sync_launches) { /* a capture cannot be waited for */
        if (cudaStreamBeginCapture(cb->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
            give_up(g, key, cudaGetLastError());
            return 0;
        }
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
    if (!keep || rc != cudaSuccess) {
        cudaGetLastError(); /* it must not be reported again by the next launch */
        give_up(g, (int)(g - cb->graphs), rc);
        g->exec = NULL;
        add_cost(be->cost, g->cost, -1); /* none of it has run */
        cb->plan.valid = false;
        cb->gained_by = NULL;
        return 1;
    }
    CUDA_TRY(err, cudaGraphLaunch(g->exec, cb->stream));
    return 0;
}
