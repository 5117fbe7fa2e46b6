/* Counts lines, words and bytes of the files that it is given, as wc does.
 *
 * It is an ordinary C program; any compiler for WASI makes a module of it. On
 * Debian and Ubuntu:
 *
 *     apt-get install clang lld wasi-libc libclang-rt-14-dev-wasm32
 *     clang --target=wasm32-wasi -O2 -s -o wordcount.wasm wordcount.c
 */

#include <ctype.h>
#include <stdio.h>

static int count(const char *path, FILE *report)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return 0;
    }
    unsigned long lines = 0, words = 0, bytes = 0;
    int c, inside = 0;
    while ((c = getc(file)) != EOF) {
        bytes++;
        lines += c == '\n';
        words += !inside && !isspace(c);
        inside = !isspace(c);
    }
    fclose(file);
    fprintf(report, "%lu %lu %lu %s\n", lines, words, bytes, path);
    printf("%lu lines, %lu words, %lu bytes in %s\n", lines, words, bytes, path);
    return 1;
}

int main(int argc, char **argv)
{
    FILE *report = fopen("/out/counts.txt", "wb");
    if (report == NULL) {
        perror("/out/counts.txt");
        return 1;
    }
    int failed = 0;
    for (int i = 1; i < argc; i++)
        failed |= !count(argv[i], report);
    return fclose(report) != 0 || failed;
}
