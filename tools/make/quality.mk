# Rules that keep the tree in order: layers, formatting.

C_FILES = $(shell git ls-files --cached --others --exclude-standard '*.c' '*.h' '*.cu' '*.cuh' 2>/dev/null)

# Arrows point down only: server -> engine -> backend; base and config lie below all.
check-layers: ## grep for includes that point upwards
	@sh tools/check_layers.sh

format: ## run clang-format over the tree
	clang-format -i $(C_FILES)

check-format: ## fail when clang-format would change something
	clang-format --dry-run -Werror $(C_FILES)
