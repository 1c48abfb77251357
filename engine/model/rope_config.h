/*
 * rope_config - the rotary settings of config.json, in either spelling: rope_theta beside
 * rope_scaling, or all in rope_parameters. What is read, and which of two places wins, follows
 * transformers 5: rope_scaling before rope_parameters, a theta inside before one beside.
 */
#ifndef ROPE_CONFIG_H
#define ROPE_CONFIG_H

struct json_fields;
struct rope_config;
struct stack_config;

#define ROPE_CONFIG_MAX_SEQ_LEN (1 << 28) /* positions stay far from KV_RING_DENSE */

/*
 * Fills *r from the top object; stack has its shape already. GPT-NeoX's own keys are read for
 * STACK_NEOX: rotary_pct, rotary_emb_base. Failure is left in top->rc.
 */
void rope_config_read(struct rope_config *r, const struct stack_config *stack,
                      int max_position_embeddings, struct json_fields *top);

/*
 * The longest sequence that a model with max_position_embeddings serves. Files disagree on whether
 * that number counts before or after stretching, so linear, dynamic and yarn give the larger one.
 */
int rope_config_max_seq_len(const struct rope_config *r, int max_position_embeddings);

#endif
