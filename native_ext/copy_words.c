#define _GNU_SOURCE
#include "copy_words.h"

#include <stdlib.h>

struct stop_word *stop_word_new(void)
{
    struct stop_word *word = aligned_alloc(sizeof *word, sizeof *word);
    if (word)
        atomic_init(&word->set, 0);
    return word;
}

struct way_word *way_word_new(void)
{
    struct way_word *word = aligned_alloc(sizeof *word, sizeof *word);
    if (word)
        atomic_init(&word->raised, 0);
    return word;
}
