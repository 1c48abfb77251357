/*
 * model_family - the table of served models. See model_family.h.
 */
#include "engine/model/model_family.h"

#include "base/err.h"
#include "engine/model/json_fields.h"

#include <string.h>
#include <strings.h>

static const struct model_family families[] = {
    {.model_type = "llama",
     .architecture = "LlamaForCausalLM",
     .max_seq_len = 2048,
     .bos_id = 1,
     .eos_id = 2,
     .bias = BIAS_KEY,
     .mlp_bias_key = true},
    {.model_type = "mistral",
     .architecture = "MistralForCausalLM",
     .n_kv_heads = 8,
     .max_seq_len = 131072,
     .bos_id = 1,
     .eos_id = 2,
     .window = WINDOW_ALWAYS},
    {.model_type = "ministral",
     .architecture = "MinistralForCausalLM",
     .n_kv_heads = 8,
     .max_seq_len = 131072,
     .bos_id = 1,
     .eos_id = 2,
     .window = WINDOW_LISTED},
    {.model_type = "qwen2",
     .architecture = "Qwen2ForCausalLM",
     .n_kv_heads = 32,
     .max_seq_len = 32768,
     .bos_id = -1,
     .eos_id = -1,
     .bias = BIAS_QKV,
     .window = WINDOW_UPPER},
    {.model_type = "qwen3",
     .architecture = "Qwen3ForCausalLM",
     .n_kv_heads = 32,
     .max_seq_len = 32768,
     .head_dim = 128,
     .bos_id = -1,
     .eos_id = -1,
     .bias = BIAS_KEY,
     .window = WINDOW_UPPER,
     .qk_norm = true},
    {.model_type = "gpt_neox",
     .architecture = "GPTNeoXForCausalLM",
     .max_seq_len = 2048,
     .bos_id = 0,
     .eos_id = 2,
     .bias = BIAS_UNLESS,
     .kind = STACK_NEOX},
    {.model_type = "block_transformer",
     .architecture = "BlockTransformerForCausalLM",
     .bos_id = -1,
     .eos_id = 0,
     .is_block = true},
};
#define N_FAMILIES (sizeof(families) / sizeof(families[0]))

static const char served_families[] =
    "LlamaForCausalLM, MistralForCausalLM, MinistralForCausalLM, Qwen2ForCausalLM, "
    "Qwen3ForCausalLM, GPTNeoXForCausalLM, BlockTransformerForCausalLM";

const struct model_family *model_family_find(struct json_fields *f)
{
    const char *type = json_fields_str(f, "model_type", NULL);
    const json_t *archs = json_fields_array(f, "architectures");
    const char *arch = json_string_value(json_array_get(archs, 0));

    if (f->rc < 0)
        return NULL;
    for (size_t i = 0; i < N_FAMILIES; i++) {
        const struct model_family *fam = &families[i];

        if (type && strcmp(type, fam->model_type) != 0)
            continue;
        /* Some early files spell it LLaMAForCausalLM. */
        if (arch && strcasecmp(arch, fam->architecture) != 0)
            continue;
        if (type || arch)
            return fam;
    }
    if (!type && !arch)
        f->rc = err_set(f->err, ERR_PARSE, "%s: model_type is missing", f->where);
    else
        f->rc = err_set(f->err, ERR_UNSUPPORTED,
                        "%s: architecture %.60s of model_type %.60s is not served; served are %s",
                        f->where, arch ? arch : "(none)", type ? type : "(none)", served_families);
    return NULL;
}
