/*
 * block_dir - a golden Block Transformer with a tokenizer, as a model directory.
 */
#ifndef BLOCK_DIR_H
#define BLOCK_DIR_H

#define BLOCK_DIR_LEN 64

/*
 * Makes a directory and puts its path into dir: a folder of tests/golden/block, and a tokenizer for
 * tests that look at ids only. Fails the test when it cannot.
 */
void block_dir_make(char dir[BLOCK_DIR_LEN], const char *variant);
void block_dir_remove(const char *dir);

#endif
