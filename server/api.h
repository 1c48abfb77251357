/*
 * api - the handlers behind the router's table. Each is called once an exchange has its whole body,
 * on the loop thread, and answers at once or starts a generation that will.
 */
#ifndef API_H
#define API_H

struct exchange;

void api_completions(struct exchange *ex);
void api_chat(struct exchange *ex);
void api_embeddings(struct exchange *ex);
void api_models(struct exchange *ex);
void api_model(struct exchange *ex);
void api_tokenize(struct exchange *ex);
void api_detokenize(struct exchange *ex);
void api_health(struct exchange *ex);
void api_health_live(struct exchange *ex);
void api_page(struct exchange *ex);
void api_page_plan(struct exchange *ex);
void api_version(struct exchange *ex);
void api_openapi(struct exchange *ex);
void api_metrics(struct exchange *ex);
void api_debug_state(struct exchange *ex);
void api_debug_kv(struct exchange *ex);
void api_debug_kv_slot(struct exchange *ex);
void api_debug_plan(struct exchange *ex);

#endif
