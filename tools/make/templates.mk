# Published chat templates against transformers' texts, which lie compressed beside their script.

TEMPLATES_WANT := tests/golden/chat_templates.json.gz

.PHONY: test-templates

$(BIN)/spand-templates: $(OBJ)/tests/templates/templates.o $(CORE_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(CUDA_LIBS)

test-templates: $(BIN)/spand-templates ## published chat templates: the same text as transformers
	@gzip -dc $(TEMPLATES_WANT) > $(BUILD)/chat_templates.json
	$(BIN)/spand-templates $(BUILD)/chat_templates.json
