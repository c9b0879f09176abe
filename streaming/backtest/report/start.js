// The text is there before Plotly is read; then the charts.

writeHead();
writeSections();
writeAnswer();
writeTimeline();
writeAlarms();
writeKnown();
writeAccuracy();
writeTried();
writeDecisions();
writeReplayed();
writeDownloads();
