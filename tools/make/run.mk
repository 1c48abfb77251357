# The two commands of the README, and what they need.
#
# Packages are looked up when make reads its files, so whatever installs them must build in a
# second make.

RUN_ARGS ?=
JOBS ?= $(shell nproc 2>/dev/null || echo 1)
TEST_DEPS_OK = $(shell pkg-config --exists check && echo 1)

deps: ## install the Debian packages that the build needs
	@sh tools/deps.sh build

deps-test:
	@sh tools/deps.sh test

run: deps ## build and start the daemon with the bundled demo model
	@$(MAKE) --no-print-directory -j$(JOBS) all
	@exec $(BIN)/spand serve $(RUN_ARGS)

test: deps-test ## build and run everything that needs no GPU
	@$(MAKE) --no-print-directory -j$(JOBS) check-layers all $(BIN)/spand-tests $(BIN)/spand-null $(BIN)/spand-lost $(BIN)/spand-plan-tests
	@$(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory test-plan-search
	@$(MAKE) --no-print-directory test-scramble test-templates
	@$(MAKE) --no-print-directory test-e2e

test-unit: $(BIN)/spand-tests ## run the Check suites (CK_RUN_SUITE=name picks one)
	$(BIN)/spand-tests

test-e2e: $(BIN)/spand $(BIN)/spand-lost ## run the daemon against curl-like clients and the OpenAI SDK
	@sh tests/e2e/run.sh $(BIN)/spand

.PHONY: deps-test test-unit

print-have-cuda:
	@echo $(HAVE_CUDA)
.PHONY: print-have-cuda
