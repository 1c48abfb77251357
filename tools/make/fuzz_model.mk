# What the fuzz targets of engine/model link beside base/: see quality.mk.
FUZZ_SRC_safetensors = engine/model/safetensors.c engine/model/json_fields.c
FUZZ_SRC_model_config = $(addprefix engine/model/,model_config.c model_family.c stack_config.c \
    block_config.c rope_config.c rope.c json_fields.c weights_dir.c safetensors.c)
