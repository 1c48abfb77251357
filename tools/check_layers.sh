#!/bin/sh
# Layers: server -> engine -> backend (engine/cpu | cuda); base and config lie below all.
# Each rule is a grep for an include that would point upwards; any hit fails the check.
set -u
bad=0
refuse() { # refuse WHY FILES... -- PATTERN
    why=$1 pattern=$2
    shift 2
    hits=$(grep -nE "$pattern" "$@" /dev/null 2>/dev/null) || return 0
    printf 'layers: %s\n%s\n' "$why" "$hits"
    bad=1
}
files() { find "$@" \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \) 2>/dev/null; }

refuse 'server/ includes one engine header, engine/engine.h' \
    '#include "(engine/([a-z_]+/|[a-df-z][a-z_]*\.h|engine_)|cuda/)' $(files server)
refuse 'engine/ names no HTTP, libuv or CUDA header' \
    '#include [<"](uv\.h|microhttpd\.h|cuda|cublas)' $(files engine)
refuse 'nobody includes server/ but server/' '#include "server/' \
    $(files base config engine cuda tools | grep -v '^tools/metrics_docs\.c$')
refuse 'cuda/ includes nothing of the engine but engine/backend.h' \
    '#include "engine/([a-z_]+/|[ac-z]|b[b-z]|backend_[a-fh-jl-z])' $(files cuda)
refuse 'engine/cpu includes nothing of the engine but the backend headers and its own folder' \
    '#include "engine/([abd-z][a-z_]*/|[ac-z][a-z_]*\.h|b[b-z]|backend_[a-fh-jl-z])' $(files engine/cpu)
refuse 'only the plan search includes what runs backward' \
    '#include "engine/(backend_grad|cpu/grad/|plan/search/)' \
    $(files base config engine server cuda | grep -vE '^(engine/(plan/search|cpu/grad)/|engine/backend_grad\.h|cuda/grad_)')
refuse 'base/ lies below all' '#include "(config|engine|cuda|server)/' $(files base)
refuse 'config/ lies below the engine' '#include "(engine|cuda|server)/' $(files config)
[ "$bad" = 0 ] && echo 'layers: ok'
exit $bad
