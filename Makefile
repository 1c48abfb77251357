# spand - build, run, test. `make help` lists the targets.
#
# Sources are found by wildcard, so adding a file needs no edit here. A file whose name ends in
# _avx2.c, _avx512.c, _avx512bf16.c or _amx.c is compiled for that instruction set and must be
# called only behind the dispatch of engine/cpu/cpu_isa.h. A file cuda/*_wgmma.cu is compiled for
# sm_90a alone: its instructions exist on no other architecture.

BUILD ?= build
CC ?= gcc
SAN ?=
CUDA ?= auto
PYTHON ?= python3
V ?=

NVCC ?= $(shell command -v nvcc 2>/dev/null || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
ifeq ($(CUDA),auto)
  HAVE_CUDA := $(if $(NVCC),1,0)
else
  HAVE_CUDA := $(CUDA)
endif

# Each flavour has its own object tree, so switching flags never mixes objects.
comma := ,
FLAVOUR := $(if $(SAN),-$(subst $(comma),-,$(SAN)))$(if $(filter 1,$(HAVE_CUDA)),,-nocuda)
OBJ := $(BUILD)/obj$(FLAVOUR)
BIN := $(BUILD)$(if $(SAN),/$(subst $(comma),-,$(SAN)))

LIBS := libmicrohttpd gnutls libuv jansson libpcre2-8 libutf8proc libcurl
PKG_CFLAGS := $(shell pkg-config --cflags $(LIBS) 2>/dev/null)
PKG_LIBS := $(shell pkg-config --libs $(LIBS) 2>/dev/null)

OPT ?= -O2
WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes
VERSION := $(shell cat VERSION 2>/dev/null || echo 0.0.0)
COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
CPPFLAGS += -I. -D_GNU_SOURCE $(PKG_CFLAGS)
CFLAGS += -std=c11 $(OPT) -g -fno-omit-frame-pointer -ffp-contract=off $(WARN)
LDFLAGS += -g
LDLIBS += $(PKG_LIBS) -lpthread -lm

ifneq ($(SAN),)
  SAN_FLAGS := -fsanitize=$(if $(filter address,$(SAN)),address$(comma)undefined,$(SAN)) -fno-sanitize-recover=undefined
  CFLAGS += $(SAN_FLAGS) -O1
  LDFLAGS += $(SAN_FLAGS)
endif

BASE_SRC   := $(wildcard base/*.c)
CONFIG_SRC := $(wildcard config/*.c)
ENGINE_SRC := $(wildcard engine/*.c engine/tokenizer/*.c engine/model/*.c engine/kv/*.c engine/plan/*.c engine/grammar/*.c engine/cpu/*.c)
CUDA_SRC   := $(filter-out cuda/grad_%,$(wildcard cuda/*.cu))
CUDA_CSRC  := $(filter-out cuda/grad_%,$(wildcard cuda/*.c))
SERVER_SRC := $(filter-out server/main.c,$(wildcard server/*.c))
TEST_SRC   := $(wildcard tests/lib/*.c tests/ref/*.c tests/base/*.c tests/config/*.c tests/engine/*.c tests/engine/*/*.c tests/server/*.c)
BENCH_SRC  := $(wildcard tests/bench/*.c)

CORE_SRC := $(BASE_SRC) $(CONFIG_SRC) $(ENGINE_SRC)
ifeq ($(HAVE_CUDA),1)
  CUDA_HOME ?= $(abspath $(dir $(NVCC))/..)
  CPPFLAGS += -DSPAND_CUDA=1
  NVCCFLAGS += -std=c++17 -O3 -lineinfo -I. -Xcompiler -Wall,-fno-omit-frame-pointer --fmad=true
  NVCC_ARCH ?= -gencode arch=compute_80,code=[sm_80,compute_80] -gencode arch=compute_90,code=sm_90
  nvcc_arch_of = $(if $(filter %_wgmma.cu,$(1)),-gencode arch=compute_90a$(comma)code=sm_90a,$(NVCC_ARCH))
  CUDA_OBJ := $(CUDA_SRC:%.cu=$(OBJ)/%.cu.o) $(CUDA_CSRC:%.c=$(OBJ)/%.o)
  CUDA_LIBS := $(if $(strip $(CUDA_SRC)),-L$(CUDA_HOME)/lib64 -Wl$(comma)-rpath$(comma)'$$ORIGIN/lib' -lcudart_static -lcublasLt -ldl -lrt -lstdc++)
endif

CORE_OBJ   := $(CORE_SRC:%.c=$(OBJ)/%.o) $(CUDA_OBJ)
SERVER_OBJ := $(SERVER_SRC:%.c=$(OBJ)/%.o)
MAIN_OBJ   := $(OBJ)/server/main.o
TEST_OBJ   := $(TEST_SRC:%.c=$(OBJ)/%.o)
BENCH_OBJ  := $(BENCH_SRC:%.c=$(OBJ)/%.o)

Q := $(if $(V),,@)
say = @printf '  %-5s %s\n' '$(1)' '$(2)'

.DEFAULT_GOAL := all
.PHONY: all help deps run test test-scramble test-e2e check-layers format check-format bench clean docs

all: $(BIN)/spand $(BIN)/spand-bench ## build the daemon and the bench

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-16s %s\n", $$1, $$2}'
	@echo "  variables: SAN=address|undefined|thread  CUDA=auto|0|1  V=1  OPT=-O0"

include tools/make/*.mk

$(BIN)/spand: $(MAIN_OBJ) $(SERVER_OBJ) $(CORE_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -rdynamic -o $@ $^ $(LDLIBS) $(CUDA_LIBS)

$(BIN)/spand-bench: $(BENCH_OBJ) $(SERVER_OBJ) $(CORE_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(CUDA_LIBS)

$(BIN)/spand-tests: $(TEST_OBJ) $(SERVER_OBJ) $(CORE_OBJ)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(shell pkg-config --libs check 2>/dev/null) $(LDLIBS) $(CUDA_LIBS)

ISA_avx2       := -mavx2 -mfma -mf16c
ISA_avx512     := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c
ISA_avx512bf16 := $(ISA_avx512) -mavx512bf16
ISA_amx        := $(ISA_avx512bf16) -mamx-tile -mamx-bf16
isa_of = $(ISA_$(lastword $(subst _, ,$(basename $(notdir $(1))))))

$(OBJ)/%.o: %.c
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(call isa_of,$<) $(if $(filter base/build_info.c,$<),-DSPAND_VERSION='"$(VERSION)"' -DSPAND_COMMIT='"$(COMMIT)"') -MMD -MP -c -o $@ $<

# The version that a binary tells is that of the tree it was built from.
$(OBJ)/base/build_info.o: VERSION $(wildcard $(shell git rev-parse --git-path logs/HEAD 2>/dev/null))

$(OBJ)/%.cu.o: %.cu
	$(call say,NVCC,$<)
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCCFLAGS) $(call nvcc_arch_of,$<) -MMD -MP -c -o $@ $<

clean: ## remove the build folder
	rm -rf $(BUILD)

-include $(shell find $(BUILD) -type f -name '*.d' 2>/dev/null)
