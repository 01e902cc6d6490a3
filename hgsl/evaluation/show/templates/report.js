choose();
drawClasses();
drawMap();
drawMarks();
