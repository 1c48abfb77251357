# The CUDA backend: its C files need CUDA's headers; its tests are a program of their own.
#
# cuBLASLt (over 500 MB) is opened at run time, not linked: the daemon starts on machines without it.

.PHONY: test-cuda test-cuda-emu bench-cuda dist

ifeq ($(HAVE_CUDA),1)

CUDA_LIBS := $(filter-out -lcublasLt,$(CUDA_LIBS))

$(OBJ)/cuda/%.o: CPPFLAGS += -isystem $(CUDA_HOME)/include
$(OBJ)/tests/cuda/%.o: CPPFLAGS += -isystem $(CUDA_HOME)/include

CUDA_TEST_SRC := $(wildcard tests/cuda/test_*.c) tests/cuda/cuda_pair.c tests/lib/test_runner.c \
    tests/lib/test_model_run.c tests/lib/test_block_run.c tests/engine/engine_fixture.c \
    engine/plan/search/grad_pass.c engine/plan/search/grad_open.c $(wildcard engine/cpu/grad/*.c)
CUDA_TEST_OBJ := $(CUDA_TEST_SRC:%.c=$(OBJ)/%.o)
CUDA_GRAD_OBJ := $(patsubst %.cu,$(OBJ)/%.cu.o,$(wildcard cuda/grad_*.cu)) $(OBJ)/cuda/grad_cuda.o
CUDA_BENCH_OBJ := $(OBJ)/tests/cuda/bench_cuda.o
# What both need of the tree.
CUDA_NEED_SRC := $(CORE_SRC)
CUDA_NEED_OBJ := $(CUDA_NEED_SRC:%.c=$(OBJ)/%.o) $(CUDA_OBJ)

$(BIN)/spand-cuda-tests: $(CUDA_TEST_OBJ) $(CUDA_GRAD_OBJ) $(CUDA_NEED_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ -Wl,--as-needed $(shell pkg-config --libs check 2>/dev/null) $(LDLIBS) $(CUDA_LIBS)

$(BIN)/spand-cuda-bench: $(CUDA_BENCH_OBJ) $(CUDA_GRAD_OBJ) $(CUDA_NEED_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ -Wl,--as-needed $(LDLIBS) $(CUDA_LIBS)

test-cuda: $(BIN)/spand-cuda-tests ## run the GPU suites; 77 and a message where there is no GPU
	CK_FORK=no $(BIN)/spand-cuda-tests

bench-cuda: $(BIN)/spand-cuda-bench ## time the main kernels in GB/s
	$(BIN)/spand-cuda-bench

# The same suites with the kernels run by a CPU (tests/cuda/emu): slow, and no GPU is needed.
EMU := $(OBJ)/emu
EMU_OBJ := $(patsubst cuda/%.cu,$(EMU)/%.o,$(filter-out cuda/read_bandwidth.cu cuda/%_wgmma.cu,$(CUDA_SRC))) \
    $(patsubst cuda/%.cu,$(EMU)/%.o,$(wildcard cuda/grad_*.cu)) $(OBJ)/cuda/grad_cuda.o \
    $(EMU)/emu.o $(OBJ)/cuda/cuda_backend.o $(OBJ)/cuda/cuda_graph.o $(OBJ)/cuda/cuda_prof.o $(OBJ)/cuda/cuda_mem.o
EMU_FLAGS := -std=c++17 -O2 -g -ffp-contract=off -Wno-attributes -Itests/cuda/emu -I. -isystem $(CUDA_HOME)/include
EMU_FILES := $(wildcard tests/cuda/emu/* tests/cuda/emu/cuda/* cuda/*.cuh cuda/*.h)

$(EMU)/%.o: cuda/%.cu $(EMU_FILES)
	$(call say,EMU,$<)
	@mkdir -p $(@D)
	$(Q)awk -f tests/cuda/emu/emu.awk $< > $(@:.o=.cc)
	$(Q)$(CXX) $(EMU_FLAGS) -include tests/cuda/emu/emu.h -c -o $@ $(@:.o=.cc)

$(EMU)/emu.o: tests/cuda/emu/emu.cc $(EMU_FILES)
	$(call say,CXX,$<)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(EMU_FLAGS) -c -o $@ $<

$(BIN)/spand-cuda-emu-tests: $(CUDA_TEST_OBJ) $(EMU_OBJ) $(filter-out $(CUDA_OBJ),$(CUDA_NEED_OBJ))
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(LDFLAGS) -o $@ $^ -Wl,--as-needed $(shell pkg-config --libs check 2>/dev/null) $(LDLIBS)

test-cuda-emu: $(BIN)/spand-cuda-emu-tests ## run the GPU suites with the kernels emulated on the CPU
	CK_FORK=no $(BIN)/spand-cuda-emu-tests

else

test-cuda bench-cuda test-cuda-emu:
	@echo "no CUDA compiler: nothing was built for a GPU" >&2; exit 77

endif

# Programs look beside themselves first. The old kind of tag, since the libraries' own needs follow it too.
LDFLAGS += -Wl,--disable-new-dtags -Wl,-rpath,'$$ORIGIN/lib'

# A folder that runs on another Linux x86-64 machine: the program and its shared libraries, but for
# the C library, the driver's and CUDA's own (DIST_CUDA=1 brings libcublasLt too: 541 MB).
DIST ?= $(BUILD)/dist/spand-$(VERSION)
DIST_CUDA ?= 0
DIST_SYSTEM := ld-linux|libc\.|libm\.|libdl\.|librt\.|libpthread\.|libcuda\.|libcublas|libcudart

dist: $(BIN)/spand $(BIN)/spand-bench ## a bundle for another Linux x86-64 machine
	@rm -rf $(DIST) && mkdir -p $(DIST)/lib
	@cp $^ $(DIST)/
	@ldd $^ | awk '/=> \//{print $$3}' | sort -u | grep -vE '/($(DIST_SYSTEM))' | xargs -r -I{} cp -L {} $(DIST)/lib/
	@if [ "$(DIST_CUDA)" = 1 ]; then cp -L $(CUDA_HOME)/lib64/libcublasLt.so.13 $(DIST)/lib/; fi
	@tar -C $(dir $(DIST)) -czf $(DIST).tar.gz $(notdir $(DIST))
	@du -sh $(DIST).tar.gz
