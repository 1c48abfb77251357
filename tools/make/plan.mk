# spand-plan: the search for a plan. What runs backward is linked here and nowhere else.
#
# CBC (Debian: coinor-libcbc-dev) checks our solver and closes gaps that it leaves; without it
# everything else works.

PLAN_SRC := $(wildcard engine/plan/search/*.c engine/cpu/grad/*.c)
PLAN_TEST_SRC := $(wildcard tests/plan_search/*.c) tests/lib/test_runner.c
# Of both backends: cuda/grad_* where there is CUDA.
GRAD_CUDA_SRC := $(wildcard cuda/grad_*.cu)
GRAD_CUDA_OBJ := $(if $(filter 1,$(HAVE_CUDA)),$(GRAD_CUDA_SRC:%.cu=$(OBJ)/%.cu.o) $(OBJ)/cuda/grad_cuda.o)
PLAN_OBJ = $(PLAN_SRC:%.c=$(OBJ)/%.o) $(GRAD_CUDA_OBJ)
CBC ?= $(shell pkg-config --exists cbc 2>/dev/null && echo 1)
CBC_LIBS := $(if $(filter 1,$(CBC)),-lCbcSolver -lCbc)

$(OBJ)/engine/plan/search/choice_cbc.o: CPPFLAGS += $(if $(filter 1,$(CBC)),-DSPAND_CBC=1 $(shell pkg-config --cflags-only-I cbc 2>/dev/null | sed 's/-I/-isystem /g'))

all: $(BIN)/spand-plan

$(BIN)/spand-plan: $(OBJ)/tools/spand_plan.o $(PLAN_OBJ) $(CORE_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(CBC_LIBS) $(CUDA_LIBS)

$(BIN)/spand-plan-tests: $(PLAN_TEST_SRC:%.c=$(OBJ)/%.o) $(PLAN_OBJ) $(CORE_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(shell pkg-config --libs check 2>/dev/null) $(LDLIBS) $(CBC_LIBS) $(CUDA_LIBS)

test-plan-search: $(BIN)/spand-plan-tests ## the plan search: optimiser, gradients, influence
	$(BIN)/spand-plan-tests

.PHONY: test-plan-search

FUZZ_SRC_calibration_input = engine/plan/search/calibration_input.c
