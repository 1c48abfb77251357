# The CUDA backend: its C files need CUDA's headers; its tests are a program of their own.
#
# cuBLASLt (over 500 MB) is opened at run time, not linked: the daemon starts on machines without it.

ifeq ($(HAVE_CUDA),1)

$(OBJ)/cuda/%.o: CPPFLAGS += -isystem $(CUDA_HOME)/include
$(OBJ)/tests/cuda/%.o: CPPFLAGS += -isystem $(CUDA_HOME)/include

CUDA_LIBS := $(filter-out -lcublasLt,$(CUDA_LIBS))

endif
