# What the fuzz entry of the request bodies links beside base/.
FUZZ_SRC_request_body = server/openai_params.c server/openai_prompt.c server/json_in.c server/api_error.c

# The page is read by the assembler, which tells make nothing.
$(OBJ)/server/api_page.o: server/page.html
$(OBJ)/server/api_openapi.o: server/openapi.json
