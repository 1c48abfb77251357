/*
 * metrics_table - every series of /metrics, once. There is no guard on purpose: metrics.c includes
 * this file twice, with its own meaning for the three macros.
 *
 *     METRIC(kind, name, alias, help, value)    a number read when the page is asked for
 *     COUNTER(member, name, alias, help)        a number that the loop thread counts
 *     HISTOGRAM(member, name, alias, help, edges)
 *
 * alias is the name under which vLLM has the same thing, or NULL. Dashboards and the endpoint
 * pickers of Kubernetes know those names; beside them each series has a name of its own.
 * `value` may use s (struct engine_stats), i (struct engine_info) and m (struct metrics).
 */
#ifndef METRIC
#define METRIC(kind, name, alias, help, value)
#endif
#ifndef COUNTER
#define COUNTER(member, name, alias, help)
#endif
#ifndef HISTOGRAM
#define HISTOGRAM(member, name, alias, help, edges)
#endif

METRIC("gauge", "spand_requests_running", "vllm:num_requests_running",
       "Sequences that have a seat in the batch.", s->n_running)
METRIC("gauge", "spand_requests_waiting", "vllm:num_requests_waiting",
       "Requests that wait for a seat.", s->n_waiting + m->n_parked)
METRIC("gauge", "spand_tokens_waiting", NULL, "Prompt tokens of the waiting requests.",
       s->waiting_tokens)
METRIC("gauge", "spand_kv_usage_ratio", "vllm:kv_cache_usage_perc",
       "Share of the key-value pages that are taken, 0 to 1.",
       s->pages_total ? (double)s->pages_used / s->pages_total : 0)
METRIC("gauge", "spand_kv_pages", NULL, "Pages of the key-value pool.", s->pages_total)
METRIC("gauge", "spand_kv_pages_used", NULL, "Pages that sequences hold.", s->pages_used)
METRIC("gauge", "spand_kv_pages_fixed", NULL,
       "Pages of sequences that took all they will ever need when they were admitted.",
       s->pages.fixed)
METRIC("gauge", "spand_kv_page_bytes", NULL, "Bytes of a page: keys and values of one head.",
       i->page_bytes)
METRIC("gauge", "spand_healthy", NULL, "1 while the engine makes progress.", s->healthy)
METRIC("counter", "spand_steps_total", NULL, "Steps of the engine.", s->n_steps)
METRIC("counter", "spand_step_seconds_total", NULL, "Time spent in steps.", s->step_ns * 1e-9)
METRIC("counter", "spand_device_seconds_total", NULL,
       "Of that, while the device worked; on the CPU the time of the ops.", s->device_ns * 1e-9)
METRIC(
    "gauge", "spand_memory_bytes_per_second", NULL,
    "How fast the device reads its memory, the limit that ops are held against; 0: not asked for "
    "(measure_memory).",
    s->memory_bytes_per_s)
METRIC("counter", "spand_prefill_seconds_total", NULL, "Time spent on steps with prompt rows.",
       s->prefill_ns * 1e-9)
METRIC("counter", "spand_decode_seconds_total", NULL, "Time spent on steps of decode rows alone.",
       s->decode_ns * 1e-9)
METRIC("counter", "spand_prefix_tokens_asked_total", "vllm:prefix_cache_queries_total",
       "Prompt tokens that were looked for in the prefix cache: those in whole pages, or blocks.",
       s->n_prefix_asked)
METRIC("counter", "spand_prefix_tokens_found_total", "vllm:prefix_cache_hits_total",
       "Prompt tokens that were found there, and not computed again.", s->n_prefix_found)
METRIC("counter", "spand_mask_seconds_total", NULL,
       "Time spent on working out which tokens structured answers may go on with.",
       s->mask_ns * 1e-9)
METRIC("counter", "spand_preemptions_total", "vllm:num_preemptions_total",
       "Sequences that lost their seat to others.", s->n_preemptions)
METRIC("counter", "spand_prompt_tokens_total", NULL, "Prompt tokens computed.", s->prompt_tokens)
METRIC("counter", "spand_prompt_tokens_all_total", "vllm:prompt_tokens_total",
       "Prompt tokens computed, or found in the prefix cache.",
       s->prompt_tokens + s->n_prefix_found)
METRIC("counter", "spand_generation_tokens_total", "vllm:generation_tokens_total",
       "Tokens generated.", s->generation_tokens)
METRIC("counter", "spand_requests_submitted_total", NULL, "Sequences given to the engine.",
       s->n_submitted)
METRIC("counter", "spand_requests_rejected_total", NULL, "Sequences the engine refused.",
       s->n_rejected)
METRIC("gauge", "spand_kv_density_ratio", NULL,
       "Share of the keys that the plan keeps at the context's length; 1 is dense.", m->kv_density)
METRIC("counter", "spand_self_tests_passed_total", NULL,
       "Tokens generated at start and when idle to prove that the engine works.", m->n_tests_passed)
METRIC("counter", "spand_self_tests_failed_total", NULL, "Self-tests that gave no token.",
       m->n_tests_failed)
METRIC("gauge", "spand_streams", NULL, "Answers that are being streamed.", m->n_streams)
METRIC("gauge", "spand_sse_backlog_bytes", NULL,
       "Bytes of streams that their clients have not taken.", m->backlog_bytes)
METRIC("gauge", "spand_connections", NULL, "Open connections.", m->n_connections)
METRIC("gauge", "spand_exchanges", NULL, "HTTP requests that are being served.", m->n_exchanges)
METRIC("counter", "spand_trace_spans_sent_total", NULL, "Spans that the trace collector took.",
       m->n_spans_sent)
METRIC("counter", "spand_trace_spans_dropped_total", NULL,
       "Spans that were lost: the queue was full, or the collector did not take them.",
       m->n_spans_dropped)
METRIC("counter", "spand_trace_posts_failed_total", NULL,
       "Posts of spans that did not get through; some are tried again.", m->n_posts_failed)
COUNTER(n_clients_left, "spand_clients_left_total", NULL,
        "Clients that left before their answer was complete.")
COUNTER(n_refused_connections, "spand_refused_connections_total", NULL,
        "Connections closed at once, because their address had too many or memory was out.")
COUNTER(n_refused_parked, "spand_refused_behind_others_total", NULL,
        "Requests refused because others, accepted in part, waited for the queue.")
COUNTER(n_refused_key, "spand_refused_by_key_total", NULL,
        "Requests refused because their API key had too many running.")
COUNTER(n_timeouts, "spand_timeouts_total", NULL,
        "Connections closed because the client was too slow.")

HISTOGRAM(ttft, "spand_time_to_first_token_seconds", "vllm:time_to_first_token_seconds",
          "From submission to the first token.", ttft_edges)
HISTOGRAM(itl, "spand_inter_token_latency_seconds", "vllm:inter_token_latency_seconds",
          "Between two tokens of a sequence.", itl_edges)
HISTOGRAM(e2e, "spand_e2e_request_latency_seconds", "vllm:e2e_request_latency_seconds",
          "From submission to the last token.", e2e_edges)
HISTOGRAM(queue, "spand_request_queue_time_seconds", "vllm:request_queue_time_seconds",
          "From submission to a seat in the batch.", e2e_edges)
HISTOGRAM(prefill, "spand_request_prefill_time_seconds", "vllm:request_prefill_time_seconds",
          "From a seat in the batch to the first token.", e2e_edges)
HISTOGRAM(decode, "spand_request_decode_time_seconds", "vllm:request_decode_time_seconds",
          "From the first token to the last.", e2e_edges)
HISTOGRAM(inference, "spand_request_inference_time_seconds", "vllm:request_inference_time_seconds",
          "From a seat in the batch to the last token.", e2e_edges)
HISTOGRAM(per_token, "spand_request_time_per_output_token_seconds",
          "vllm:request_time_per_output_token_seconds",
          "Mean time between the tokens of a sequence.", itl_edges)
HISTOGRAM(params_max_tokens, "spand_request_params_max_tokens", "vllm:request_params_max_tokens",
          "max_tokens of a sequence.", count_edges)
HISTOGRAM(params_n, "spand_request_params_n", "vllm:request_params_n",
          "Answers asked for by a request and prompt.", n_edges)
HISTOGRAM(http_duration, "spand_http_request_duration_seconds", NULL,
          "From the request's head to the end of its answer.", http_edges)
HISTOGRAM(prompt_len, "spand_request_prompt_tokens", "vllm:request_prompt_tokens",
          "Prompt tokens of a sequence.", count_edges)
HISTOGRAM(longest_output, "spand_request_max_generation_tokens",
          "vllm:request_max_num_generation_tokens",
          "Generated tokens of a request's longest answer.", count_edges)
HISTOGRAM(output_len, "spand_request_generation_tokens", "vllm:request_generation_tokens",
          "Generated tokens of a sequence.", count_edges)

#undef METRIC
#undef COUNTER
#undef HISTOGRAM
