# What the fuzz entry of the request bodies links beside base/.
FUZZ_SRC_request_body = $(addprefix server/,openai_params.c openai_prompt.c openai_tools.c openai_grammar.c \
    json_in.c api_error.c)

# A daemon whose device can be lost, for the tests.
$(BIN)/spand-lost: $(OBJ)/tests/e2e/fault/lost_device.o $(MAIN_OBJ) $(SERVER_OBJ) $(CORE_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -Wl,--wrap=backend_open -rdynamic -o $@ $^ $(LDLIBS) $(CUDA_LIBS)

# The page is read by the assembler, which tells make nothing.
$(OBJ)/server/api_page.o: server/page.html
$(OBJ)/server/api_openapi.o: server/openapi.json
