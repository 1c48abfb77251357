/*
 * config_keys - every setting, once. There is no guard on purpose: whoever includes this file
 * defines what he wants to know of a key and gets it for all of them. The fields of struct config,
 * the parser, --help, --print-config and CONFIG.md all come from here.
 *
 *     CONFIG_SECTION(title, prose)
 *     CONFIG_KEY(type, name, default, min, max, unit, help)
 *
 * default  text, as it would be written behind a flag
 * min max  of the value; for STRING and PATH of its length in bytes
 * unit     for ENUM the words, separated by spaces; for a STRING with a syntax, that syntax
 *
 * After a change run `make docs`; a test compares CONFIG.md and default.json with this table.
 */
#ifndef CONFIG_SECTION
#define CONFIG_SECTION(title, prose)
#endif
#ifndef CONFIG_KEY
#define CONFIG_KEY(type, name, default_text, min, max, unit, help)
#endif

CONFIG_SECTION("Model", "What is served, and in which numbers.")

CONFIG_KEY(PATH, model, "models/demo-llama", 1, 4096, "",
           "The model's directory: config.json, tokenizer.json and the weights as safetensors.")
CONFIG_KEY(STRING, served_model_name, "", 0, 256, "",
           "The model's id in the API. Empty means the name of the model's directory.")
CONFIG_KEY(STRING, plan, "dense", 1, 4096,
           "FILE, dense, streaming:SINK,RECENT, uniform:DENSITY or duo:DIR[,SHARE]",
           "Which keys each head keeps. A plan file gives every head its own span; dense keeps "
           "everything; streaming keeps the first SINK and the last RECENT tokens in all heads; "
           "uniform gives all heads the same share of the sequence; duo reads the gates that "
           "DuoAttention trains, and opens the SHARE of the heads with the largest ones.")
CONFIG_KEY(STRING, plan_length, "request", 1, 16, "request or 1..16777216",
           "The length that a plan's spans are computed for. request takes each request's own "
           "prompt plus max_tokens; a number gives all requests the same spans, so that they can "
           "share cached prefixes.")
CONFIG_KEY(ENUM, span_convention, "auto", 0, 0, "auto includes_sink excludes_sink",
           "Whether alpha + beta * N of a plan's rule counts the 64 tokens at the start that stay. "
           "auto takes what the plan file says of itself, else includes_sink, as the published "
           "runtime and paper have it; excludes_sink is how the optimiser of the published plans "
           "reckoned: every span is 64 tokens longer.")
CONFIG_KEY(STRING, device, "auto", 1, 16, "auto, cpu, cuda or cuda:N",
           "Where the model runs. auto takes the first GPU, or the CPU where there is none.")
CONFIG_KEY(ENUM, dtype, "auto", 0, 0, "auto f32 bf16 f16",
           "The numbers that weights and activations are kept in. auto takes what the weights' "
           "file holds, f32 computes in single precision throughout.")
CONFIG_KEY(ENUM, weights, "file", 0, 0, "file random",
           "Where the weights come from. random fills the shapes of config.json with random "
           "numbers, for measurements without a download.")
CONFIG_KEY(INT64, weights_seed, "0", 0, 9007199254740991, "",
           "The seed of random weights: the same seed gives the same numbers on every device.")

CONFIG_SECTION("Scheduler", "How many requests share a step, and the memory they may take.")

CONFIG_KEY(INT, max_batch, "32", 1, 16384, "sequences",
           "How many sequences run at once. Further ones wait in the queue.")
CONFIG_KEY(INT, chunk_tokens, "512", 1, 65536, "rows",
           "How many prompt tokens one step may work on. Smaller chunks let running answers "
           "flow more evenly, larger ones start new answers sooner.")
CONFIG_KEY(INT, max_seq_len, "0", 0, 16777216, "tokens",
           "The longest prompt plus answer that is accepted. 0 means the model's own limit, and "
           "more than that limit is refused.")
CONFIG_KEY(BYTES, kv_memory, "0", 0, 1125899906842624, "",
           "The memory for keys and values, taken once at start. 0 sizes it by itself: on a GPU "
           "by gpu_memory_fraction, on the CPU for max_batch sequences within half of what is "
           "free.")
CONFIG_KEY(DOUBLE, gpu_memory_fraction, "0.9", 0.05, 1, "",
           "The share of the GPU's memory that weights, buffers and the key-value pool may fill "
           "together when kv_memory is 0.")
CONFIG_KEY(
    INT, page_entries, "64", 8, 1024, "entries",
    "How many consecutive keys and values of one head lie in one page of the pool: a token's, "
    "in a Block Transformer a block's.")
CONFIG_KEY(
    BOOL, prefix_cache, "true", 0, 0, "",
    "Keeps the keys and values of prompts while nobody else needs their memory: a prompt that "
    "begins like an earlier one, or like another sample of the same request, computes only "
    "what is new. Answers do not change.")
CONFIG_KEY(ENUM, prefix_cache_scope, "server", 0, 0, "server key",
           "Who shares cached prompts: server means all requests, key only those with the same API "
           "key, so that nobody can tell by the time it takes what others have asked.")
CONFIG_KEY(INT, threads, "0", 0, 1024, "threads",
           "How many threads compute on the CPU. 0 means one for each core that the process may "
           "use.")
/*
 * Off: a pinned thread whose core another program uses keeps all others waiting at the end of each
 * operation. On a busy machine of 2 cores decode ran at 22 tokens/s pinned, at 44 unpinned; among
 * undisturbed operations (the fastest tenth) the two differ by less than 1 %.
 */
CONFIG_KEY(BOOL, pin_threads, "false", 0, 0, "",
           "Binds each computing thread to a core. Of use only where no other program runs on "
           "the machine: a thread whose core is taken holds up all others.")
CONFIG_KEY(
    ENUM, scheduling, "arrival", 0, 0, "arrival priority",
    "Who is served first. arrival is strictly in turn, and a request that names a priority is "
    "refused; priority serves lower numbers of the field priority sooner, equal ones in turn.")
CONFIG_KEY(ENUM, run_ahead, "auto", 0, 0, "auto off on",
           "Whether a step is queued while the one before it still computes, and its tokens are "
           "known to the device alone. auto does so on a GPU, which then never waits for the host; "
           "on the CPU it gains nothing and delays each token by a step. The answers are the same.")
CONFIG_KEY(BOOL, cuda_graphs, "true", 0, 0, "",
           "On a GPU, keeps the launches of a decode step as one CUDA graph for each number of "
           "sequences, and replays it. Off, every kernel is launched by itself.")
CONFIG_KEY(
    BOOL, batch_invariant, "true", 0, 0, "",
    "On a GPU, a sequence gets the same tokens whatever it is batched with. Off, a step that "
    "decodes more than 128 sequences multiplies by cuBLASLt, which is faster there and sums "
    "in another order: then a token may depend on how many others are decoded.")
CONFIG_KEY(
    BOOL, whole_blocks, "true", 0, 0, "",
    "Decodes the tokens of a Block Transformer's block in one step, and tells them together. "
    "Steps in which a request has penalties or a grammar, whose tokens the next draw depends "
    "on, are of one token each, and so are all with this off. The answers are the same.")
CONFIG_KEY(INT, max_waiting, "512", 1, 1000000, "requests",
           "How many requests may wait for a seat. Beyond it a request is refused with status "
           "429 and a Retry-After header.")
CONFIG_KEY(INT, max_waiting_tokens, "4194304", 0, 2147483647, "tokens",
           "How many prompt tokens may wait for a seat. A request that would exceed it is refused "
           "with status 429; into an empty queue it is taken whatever its size. 0 means no limit.")
CONFIG_KEY(INT, queue_timeout_ms, "0", 0, 86400000, "ms",
           "How long a request may wait for a seat before it is refused with status 429. 0 means "
           "as long as the client stays.")

CONFIG_SECTION("Requests", "What clients may ask for, and what they get when they do not say.")

CONFIG_KEY(INT, default_max_tokens, "1024", 1, 16777216, "tokens",
           "The length of a chat answer when the request sets no limit, cut to what the context "
           "has left. Completions without a limit get 16, as the API prescribes.")
CONFIG_KEY(ENUM, tool_format, "auto", 0, 0, "auto hermes llama3 mistral",
           "How the model writes calls of tools. auto goes by its chat template.")
CONFIG_KEY(ENUM, sampling_defaults, "openai", 0, 0, "openai model",
           "Where temperature, top_p and the like come from when a request does not set them: "
           "openai means temperature 1 and nothing else, model means the model's "
           "generation_config.json.")
CONFIG_KEY(INT, max_prompts, "256", 1, 65536, "prompts",
           "How many prompts one completions request may carry.")
CONFIG_KEY(INT, max_choices, "256", 1, 65536, "choices",
           "How many answers one request may ask for: prompts times n, or times best_of where "
           "that is larger.")
CONFIG_KEY(ENUM, embedding_pooling, "mean", 0, 0, "off mean last",
           "What an embedding is made of: the mean of the hidden states of all its tokens, or "
           "that of the last one, behind the model's last norm. off refuses embeddings.")
CONFIG_KEY(BOOL, embedding_normalize, "false", 0, 0, "",
           "Whether embeddings are scaled to length 1 when a request does not say.")
CONFIG_KEY(INT, max_inputs, "2048", 1, 65536, "inputs",
           "How many texts one embeddings request may carry.")
CONFIG_KEY(BYTES, request_memory_bytes, "1GiB", 1048576, 1125899906842624, "",
           "The memory that all requests together may take for their tokens, and for the logprobs "
           "of their prompts. Beyond it a request is refused with status 429 and a Retry-After "
           "header.")
CONFIG_KEY(INT, grammar_cache, "64", 1, 65536, "grammars",
           "How many compiled schemas, regular expressions and grammars are kept for requests that "
           "ask for the same again.")
CONFIG_KEY(BYTES, grammar_memory_bytes, "32MiB", 65536, 1125899906842624, "",
           "The memory that compiling one schema or grammar may take. Beyond it the request is "
           "refused.")
CONFIG_KEY(INT, grammar_timeout_ms, "2000", 1, 600000, "ms",
           "The time that compiling one schema or grammar may take. Beyond it the request is "
           "refused. It never holds up other requests.")
CONFIG_KEY(INT, max_logprobs, "20", 0, 1000, "tokens",
           "The most alternatives a chat request may ask for with top_logprobs. Completions "
           "allow 5, as the API prescribes.")

CONFIG_KEY(INT, request_timeout_ms, "3600000", 0, 86400000, "ms",
           "How long one request may take in all. What runs longer is cancelled: status 408, or an "
           "error event where a stream has begun. 0 means no limit.")

CONFIG_SECTION("Server", "Addresses, and the limits that keep one client from harming others.")

CONFIG_KEY(STRING, host, "127.0.0.1", 1, 255, "",
           "The address to listen on. 0.0.0.0 or :: opens the server to the network: put it "
           "behind a proxy that authenticates.")
CONFIG_KEY(INT, port, "8000", 0, 65535, "",
           "The TCP port to listen on. 0 lets the system choose one and prints it.")
CONFIG_KEY(PATH, unix_socket, "", 0, 107, "",
           "A UNIX socket to listen on instead of host and port. A socket that nobody listens on "
           "any more is replaced.")
CONFIG_KEY(STRING, unix_socket_mode, "0660", 3, 5, "octal digits",
           "The permissions of the UNIX socket.")
CONFIG_KEY(INT, max_connections, "4096", 1, 1000000, "connections",
           "How many clients may be connected at once. Further ones are not accepted until "
           "others leave.")
CONFIG_KEY(INT, max_connections_per_address, "2048", 0, 1000000, "connections",
           "How many of them one address may have; more are closed at once. 0 means no limit, "
           "which suits a server that only a proxy talks to.")
CONFIG_KEY(BYTES, connection_memory_bytes, "128KiB", 16384, 16777216, "",
           "The memory a connection has for its headers and its unsent output.")
CONFIG_KEY(BYTES, max_body_bytes, "32MiB", 1024, 1073741824, "",
           "The largest request body. Larger ones are refused with status 413.")
CONFIG_KEY(INT, json_depth, "64", 4, 512, "levels", "How deeply a request's JSON may nest.")
CONFIG_KEY(INT, max_headers, "100", 1, 10000, "headers",
           "How many header lines a request may have. More are refused with status 431.")
CONFIG_KEY(INT, idle_timeout_ms, "75000", 100, 86400000, "ms",
           "How long a connection may stay open between two requests.")
CONFIG_KEY(INT, header_timeout_ms, "10000", 100, 600000, "ms",
           "How long a client may take to send its headers, from the first byte to the last.")
CONFIG_KEY(INT, body_timeout_ms, "30000", 100, 3600000, "ms",
           "How long a client may take to send its body, and the time that min_rate gives for what "
           "has come.")
CONFIG_KEY(INT, write_timeout_ms, "30000", 100, 3600000, "ms",
           "How long a client may take to accept output that is ready for it, and the time that "
           "min_rate gives for its size. Then its connection is closed and its request cancelled.")
CONFIG_KEY(BYTES, min_rate, "16KiB", 0, 1073741824, "",
           "How many bytes a second a client must send or accept on average to be given more than "
           "the timeouts for bodies and answers. 0 gives no more.")
CONFIG_KEY(INT, sse_ping_ms, "15000", 0, 3600000, "ms",
           "After how long a silent stream gets a comment line, which keeps proxies from closing "
           "it. 0 sends none.")
CONFIG_KEY(INT, drain_timeout_ms, "30000", 0, 3600000, "ms",
           "How long running requests may finish after SIGTERM before they are cancelled.")

CONFIG_SECTION("Access", "Who may use the server, and over what.")

CONFIG_KEY(
    PATH, api_keys_file, "", 0, 4096, "",
    "A file of API keys, one a line: the key, or a name and the key. With it, every path but "
    "the health checks wants one, as a bearer token or in X-Api-Key. Empty means the "
    "systemd credential api-keys, if there is one. Read again on SIGHUP.")
CONFIG_KEY(INT, max_requests_per_key, "0", 0, 1000000, "requests",
           "How many generations one key may have running or waiting; more are refused with status "
           "429. 0 means no limit.")
CONFIG_KEY(BOOL, metrics_without_key, "false", 0, 0, "",
           "Serves /metrics to everybody even where API keys are set.")
CONFIG_KEY(PATH, tls_cert_file, "", 0, 4096, "",
           "The certificate and its chain as PEM; with it the server speaks TLS 1.2 and 1.3 only. "
           "Empty means the systemd credential tls-cert, if there is one. Read again on SIGHUP.")
CONFIG_KEY(PATH, tls_key_file, "", 0, 4096, "",
           "The certificate's private key as PEM. Empty means the systemd credential tls-key.")
CONFIG_KEY(STRING, cors_origins, "", 0, 4096, "origins separated by commas, or *",
           "The origins whose pages may call the API from a browser, as in https://example.org. "
           "Empty allows none.")

CONFIG_SECTION("Operation", "What the daemon tells about itself.")

CONFIG_KEY(ENUM, log_level, "info", 0, 0, "error warn info debug",
           "The least important lines that are still logged.")
CONFIG_KEY(ENUM, log_format, "text", 0, 0, "text json",
           "How log lines are written: text for people, json for collectors.")
CONFIG_KEY(BOOL, log_requests, "true", 0, 0, "",
           "Logs one line for each finished request: sizes and times, never what was said.")
CONFIG_KEY(BOOL, log_prompts, "false", 0, 0, "",
           "Also logs the body of each request, up to 2048 bytes of it, with what users said.")
CONFIG_KEY(INT, stall_timeout_ms, "120000", 100, 86400000, "ms",
           "How long the engine may have work and finish no step before the server calls itself "
           "unhealthy and leaves systemd's watchdog unfed. Longer than any step.")
CONFIG_KEY(INT, self_test_ms, "30000", 0, 86400000, "ms",
           "After how much idle time the server generates one token for itself, so that a device "
           "that died in silence is noticed. 0 never does.")
CONFIG_KEY(BOOL, metrics, "true", 0, 0, "", "Serves /metrics in the format of Prometheus.")
CONFIG_KEY(STRING, otlp_traces_endpoint, "", 0, 2048, "URL",
           "Where spans of requests are sent: the URL of an OpenTelemetry collector's OTLP/HTTP "
           "receiver, as in http://127.0.0.1:4318/v1/traces. They name sizes and times, never what "
           "was said. Empty sends none.")
CONFIG_KEY(PATH, otlp_headers_file, "", 0, 4096, "",
           "A file of headers for the collector, one a line as Name: value, for its key.")
CONFIG_KEY(DOUBLE, otlp_traces_ratio, "1", 0, 1, "",
           "The share of requests that are traced. Requests that come with a traceparent follow "
           "their caller's decision instead.")
CONFIG_KEY(STRING, otlp_service_name, "spand", 1, 256, "", "The service's name in traces.")
CONFIG_KEY(BOOL, measure_memory, "false", 0, 0, "",
           "Measures at start how fast the device reads its memory, so that /metrics can say what "
           "share of it steps and operations reach. On the CPU it takes a second and 512 MiB.")
CONFIG_KEY(
    INT, op_timing_steps, "512", 0, 1000000, "steps",
    "On a GPU the operations of one step in so many are launched one by one and timed, so "
    "that /metrics can say how fast each is; such a step takes a little longer. 0 times none. "
    "The CPU times all of them.")
CONFIG_KEY(BOOL, debug_endpoints, "false", 0, 0, "",
           "Serves /debug/*: slots, queues, plan and memory. They show what others ask for, so "
           "leave them off where clients are not trusted.")
CONFIG_KEY(INT, kv_sweep_steps, "0", 0, 1000000, "steps",
           "Checks after so many steps that every page of the key-value pool has exactly one "
           "owner, and ends the process if not. For hunting bugs: it walks over the whole pool. 0 "
           "never does; /debug/kv checks when it is asked.")
CONFIG_KEY(PATH, trace, "", 0, 4096, "",
           "A file that every decision of the scheduler is written to, and what it was told, one "
           "JSON line each; `spand replay --trace FILE` runs it again without the model. Empty "
           "writes none.")

#undef CONFIG_SECTION
#undef CONFIG_KEY
